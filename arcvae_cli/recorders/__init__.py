"""Those who listen to a training: one small class each."""
