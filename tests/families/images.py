"""Images and their labels, for all cases."""

import torch

N, CLASSES = 4, 5
IMAGES, LABELS = torch.randn(N, 3, 32, 32), torch.tensor([0, 1, 2, 1])
TINY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "num_labels": CLASSES}
