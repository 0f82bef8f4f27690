"""What a person sees: console, tables, pictures, run folders."""
