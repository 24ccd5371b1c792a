"""From images to results: segmenter, class embeddings, videos, explanations, files."""
