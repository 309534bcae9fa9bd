"""The mask search: its rules, its training steps, and drivers for one search, a stack, or several thresholds."""
