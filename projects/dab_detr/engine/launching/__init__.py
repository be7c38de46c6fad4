"""Around a training: its processes, signals, and the folder that it alone writes into."""
