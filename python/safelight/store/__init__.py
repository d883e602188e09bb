"""What outlives the process: the job database and the finished files."""
