"""From a prepared data set to a trained model: one loop for every kind of model, world size and ZeRO stage."""
