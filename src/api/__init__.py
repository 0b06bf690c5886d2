"""HTTP: what is asked and answered. Rules live in `src.services`."""
