"""Swapping torch's layers in a model that is already there."""

import copy

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import batchformer as bf
from tolerances import assert_near


class Model(nn.Module):
    """A stack, a layer that stands in two places, one in a list, and one of the user's own class."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True)
        self.stack = nn.TransformerEncoder(layer, 2)
        self.shared = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", norm_first=True)
        self.again = self.shared
        self.several = nn.ModuleList([nn.TransformerEncoderLayer(16, 4, 24, 0.0)])
        self.own = Own(16, 4, 24, 0.0)

    def forward(self, x):
        return self.own(self.several[0](self.again(self.shared(self.stack(x)))))


class Own(nn.TransformerEncoderLayer):
    def forward(self, src):
        return 2 * super().forward(src)


def swapped(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, bf.TransformerEncoderLayer)]


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def test_results_gradients_and_parameters_stay():
    model = Model().double()
    x = torch.randn(7, 5, 16, dtype=torch.float64)
    expected = gradients(model, x)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    modules = list(model.modules())
    assert bf.accelerate(model) is model
    assert list(model.modules()) == modules
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert_near(gradients(model, x), expected, torch.float64)


def test_every_layer_of_torch_is_swapped_once_and_no_other(capsys):
    model = bf.accelerate(Model())
    assert len(swapped(model)) == 4
    assert "swapped 4 of torch's encoder layers" in capsys.readouterr().out
    assert type(model.own) is Own
    assert model.again is model.shared
    bf.accelerate(model, verbose=False)
    assert capsys.readouterr().out == ""


def test_a_swapped_layer_runs_the_op():
    model = bf.accelerate(Model())
    before = sum(bf.ops.path_counts().values())
    model(torch.randn(7, 5, 16))
    assert sum(bf.ops.path_counts().values()) == before + 5


def test_a_model_that_is_itself_a_layer_is_swapped():
    layer = nn.TransformerEncoderLayer(16, 4)
    assert bf.accelerate(layer) is layer
    assert type(layer) is bf.TransformerEncoderLayer


def test_flags_dtype_and_hooks_stay():
    model = Model().bfloat16().eval()
    model.stack.layers[1].train()
    model.shared.requires_grad_(False)
    calls = []
    model.shared.register_forward_hook(lambda *_: calls.append("forward"))
    model.several[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    flags = [(m.training, *(p.requires_grad for p in m.parameters())) for m in model.modules()]
    bf.accelerate(model)
    assert [(m.training, *(p.requires_grad for p in m.parameters())) for m in model.modules()] == flags
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model(torch.randn(7, 5, 16, dtype=torch.bfloat16))
    assert calls == ["forward", "forward", "pre"]


def test_forwards_that_were_replaced_before_the_swap_stay():
    model = Model()
    layer = model.several[0]
    layer.linear2.forward = lambda x, forward=layer.linear2.forward: 3 * forward(x)
    x = torch.randn(7, 5, 16)
    expected = layer(x)
    bf.accelerate(model)
    assert "forward" in layer.declined(x)
    assert torch.equal(layer(x), expected)


def test_an_optimizer_built_before_keeps_training_the_model():
    torch.manual_seed(1)
    models = [Model().double()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    bf.accelerate(models[1])
    for _ in range(3):
        x = torch.randn(7, 5, 16, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    for theirs, ours in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_a_model_without_such_layers_is_left_as_it_is(capsys):
    model = nn.Linear(3, 4)
    assert bf.accelerate(model) is model
    assert "swapped 0" in capsys.readouterr().out


def test_masks_still_work_after_the_swap():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True), 2)
    x = torch.randn(3, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    expected = model(x, src_key_padding_mask=mask)
    torch.testing.assert_close(bf.accelerate(model)(x, src_key_padding_mask=mask), expected)


def test_something_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        bf.accelerate([nn.Linear(3, 4)])


@pytest.mark.parametrize("dynamo", [True, False], ids=["by torch.export", "by a trace"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_model_that_is_exported_to_onnx_has_torchs_operations(dynamo, tmp_path):
    model = bf.accelerate(nn.Sequential(nn.TransformerEncoderLayer(16, 4, 16, batch_first=True))).eval()
    x = torch.randn(5, 7, 16)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
    exported = ReferenceEvaluator(file)
    (y,) = exported.run(None, {exported.input_names[0]: x.numpy()})
    assert_near({"y": torch.from_numpy(y)}, {"y": model(x).detach()}, torch.float32)
