"""The nets of the workloads, one family a file."""
