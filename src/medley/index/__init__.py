"""From a trained model to answers: scorers (vectors of every user and item) and their search."""
