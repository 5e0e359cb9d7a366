"""What a person sees: tables, a live view, a summary, logs. Read only."""
