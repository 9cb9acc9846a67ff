"""The playground: a small drawn world in which every technique can be tried, and measured, without a download."""
