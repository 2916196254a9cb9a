"""The papers' own figures of long-tailed recognition."""

FIGURES = """\
ImageNet-LT, test accuracy in %, by the README of the official code:

| | All | Many | Medium | Few |
|---|---|---|---|---|
| RIDE, 3 experts, ResNet-10 | 44.7 | 57.0 | 40.3 | 25.5 |
| + BatchFormer | 45.7 | 56.3 | 42.1 | 28.3 |
| RIDE, 3 experts, ResNet-50 | 53.6 | 64.9 | 50.4 | 33.2 |
| + BatchFormer | 54.1 | 64.3 | 51.4 | 35.1 |
| PaCo, ResNet-50 | 57.0 | 64.8 | 55.9 | 39.1 |
| + BatchFormer | 57.4 | 62.7 | 56.7 | 42.1 |
| RIDE, 3 experts, ResNeXt-50, one stage | 55.9 | 67.3 | 52.8 | 34.6 |
| + BatchFormer | 56.5 | 66.6 | 54.2 | 36.0 |

iNaturalist 2018: RIDE 72.5, 68.1, 72.7, 73.2; + BatchFormer 74.1, 65.5, 74.5, 75.8.

Here it is letters instead of photographs, thirds of the classes instead of groups by 100 and 20 images,
and networks of some hundred thousand weights. RIDE is without its router, and each expert has the loss
of Balanced Softmax; PaCo is without RandAugment. The module has the weight decay of the official runs,
5e-4, and there are two streams in all systems (in the official RIDE on ImageNet-LT there is one).
"""
