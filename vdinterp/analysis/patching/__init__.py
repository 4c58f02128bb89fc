"""What matters when it is swapped: activations, paths and edges, exactly or estimated by gradients."""
