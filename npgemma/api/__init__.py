"""What a user holds: models that are loaded, processors, and batches of jobs."""
