"""Training of an imported graph: data, losses, schedules, constraints and the loop. Needs torch and Lightning."""
