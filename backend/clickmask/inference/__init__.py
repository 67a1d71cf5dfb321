"""The way from a prompt to a prediction: segmenters, embeddings, weights and runtimes."""
