"""What one training run consists of beside the model: state, folder, journal, signals, learning-rate schedule."""
