"""Two training runs side by side: planned, stepped in lockstep, judged, and explained."""
