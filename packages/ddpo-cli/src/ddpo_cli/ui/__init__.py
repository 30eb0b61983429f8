"""What a person sees: text, tables, progress, and the live view of a run."""
