"""Image operations that several techniques share."""
