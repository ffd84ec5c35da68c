"""This process, its machine and its files, and the other processes of a job."""
