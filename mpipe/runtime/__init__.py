"""What runs in the other processes: the coordinator and the workers."""
