"""From a prompt to a prediction: segmenters, embeddings, weights and runtimes."""
