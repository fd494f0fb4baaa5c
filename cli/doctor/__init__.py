"""`diastole doctor`: what is wrong with a deployment, why, and what to do; a file for each place to look."""
