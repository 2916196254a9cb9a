"""Mistakes that several parts of the package meet."""

from error_table.row import Mistake

NOT_A_TENSOR = Mistake(
    "An argument is a list, an array, a number or None where a tensor is needed.",
    "Pass a tensor: `torch.as_tensor(x)`.",
)
NOT_A_MODULE = Mistake(
    "A list of modules, a path or a state_dict was passed in place of the model.",
    "Pass the model itself, an instance of `torch.nn.Module`.",
)
NOT_FLOATING = Mistake(
    "Integers, such as class or token indices, or complex numbers go into a layer that computes with floats.",
    "Convert them, `x.float()`, and pass indices through an embedding first.",
)
OTHER_DTYPE = Mistake(
    "Input and parameters have different dtypes, often as one of them was converted and the other not.",
    "Convert one of them: `layer.to(x.dtype)`.",
)
OTHER_DEVICE = Mistake(
    "The tensors of one call are on different devices, often as a part of the model was moved later.",
    "Move all of them: `layer.to(x.device)`.",
)
NOT_DENSE = Mistake(
    "The input is a sparse, MKL-DNN or named tensor, on which torch's own layer fails, too.",
    "Convert it: `x.to_dense()`, and `x.rename(None)` for names.",
)
EMPTY_BATCH = Mistake(
    "A batch without samples, as filters and uneven splits of a data set leave them, comes up in training.",
    "Skip it, or make the loader do so: `DataLoader(dataset, drop_last=True)`.",
)
HEADS = Mistake(
    "The width cannot be shared evenly among so many heads.",
    "Choose a divisor of the width: `BatchFormer(64, nhead=4)`.",
)
PROBABILITY = Mistake(
    "Dropout was given in percent, with a sign, or as NaN.",
    "Give the probability of dropping: `dropout=0.1`.",
)
ACTIVATION = Mistake(
    "The name of the activation is none that torch's layer knows.",
    "Write `'relu'` or `'gelu'`; the modules also take a callable: `activation=torch.nn.functional.silu`.",
)
CHOICE = Mistake(
    "The option has few legal values, and this is none of them.",
    "Write one of the values that the sentence lists, as it is spelled there.",
)
DATA_PARALLEL = Mistake(
    "The model runs in nn.DataParallel, which would mix up the order of the two streams.",
    "Run one process for each device, with `DistributedDataParallel`, or use one device.",
)
