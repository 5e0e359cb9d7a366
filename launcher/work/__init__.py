"""What runs inside a job. Stands on words and records alone, plus the engine of its own environment."""
