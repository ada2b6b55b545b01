"""What a BatchNorm must compute: a reference, error bounds, strategies and laws."""
