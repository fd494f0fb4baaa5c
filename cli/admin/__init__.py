"""`diastole admin`: look at a coordinator and steer it; a file for each noun."""
