"""Which tests a mutant of a file is shown to, the quick and the telling ones first."""

from collections.abc import Callable
from functools import partial

import test_activation_kernels as activation
import test_arguments as beside
import test_attention_long as long
import test_attention_small as small
import test_norm_kernels as norm
import test_reduce_kernels as reduce
import test_softmax_kernels as softmax
import torch


def trials() -> dict[str, list[Callable[[], None]]]:
    """By the file's name."""
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32

    def attend(*shape):
        return partial(
            small.test_attended_and_gradients_are_those_of_the_formula, "check", shape[:-1], shape[-1]
        )

    few = [
        attend(bf16, 3, 7, 2, 24, True, 0.5, 4),
        attend(bf16, 4, 5, 1, 48, False, 0.5, 1),
        attend(bf16, 33, 2, 1, 16, True, 0.25, 1),
        attend(f32, 20, 2, 1, 40, True, 0.3, 2),
        attend(f16, 5, 4, 2, 7, False, 0.3, 4),
        attend(f32, 3, 3, 1, 5, False, 0.3, 1),
        partial(small.test_what_is_no_number_stays_at_its_position, "check", float("inf"), 2, bf16),
        partial(small.test_attended_is_made_again_only_if_asked_for, "check"),
    ]
    many = [
        (bf16, 2, 16, 11, 7, 2, 32, True, 0.5, long.FEW),
        (f16, 33, 0, 33, 1, 1, 48, False, 0.0, long.FEW),
        (f32, 20, 36, 33, 1, 2, 20, False, 0.5, long.MANY),
        (bf16, 70, 0, 70, 2, 1, 32, False, 0.5, long.FEW),
        (bf16, 20, 90, 77, 1, 1, 80, True, 0.5, long.MANY),
        (f16, 66, 0, 66, 1, 1, 128, True, 0.5, long.FEW),
        (bf16, 33, 37, 37, 1, 1, 256, False, 0.5, long.FEW),
    ]
    wide = [each for each in softmax.SHAPES if each[2] * each[3] < 2_500]
    normed = [
        norm.Case(norm.BF16, 3, 5, 40, True, 0.5, skip=True),
        norm.Case(norm.BF16, 3, 3, 520, True, 0.5, skip=True),
        norm.Case(norm.AUTOCAST, 3, 2, 64, False, 0.5, skip=True),
        norm.Case(norm.FLOAT, 2, 3, 24, affine=False, has_norm=False),
        norm.Case(norm.BF16, 2, 3, 24, affine=False, skip=True),
    ]
    acted = [case for case in activation.CASES if case.rows * case.columns < 12_000]
    return {
        "tiles.cu": few,
        "attention_small.cu": few,
        "attention_long.cu": [
            *(
                partial(long.test_attended_and_gradients_are_those_of_the_formula, "check", each)
                for each in many
            ),
            partial(long.test_keys_that_do_not_count_get_no_gradient, "check"),
        ],
        "softmax.cu": [
            *(
                partial(softmax.test_weights_and_gradients_are_those_of_the_formula, "check", each)
                for each in wide
            ),
            partial(softmax.test_a_weight_stays_where_the_mask_says_so_and_nowhere_else, "check", 67, 0.5),
        ],
        "norm.cu": [
            *(partial(norm.test_the_forward_is_that_of_float64, case, "check") for case in normed),
            *(partial(norm.test_the_backward_is_that_of_float64, case, 2, "check") for case in normed),
            *(partial(beside.test_the_norm_writes_what_is_asked_for, case, "check") for case in beside.CASES),
            *(
                partial(beside.test_the_backward_of_the_norm_writes_what_is_asked_for, case, "check")
                for case in beside.CASES
            ),
        ],
        "activation.cu": [
            *(partial(activation.test_the_forward_is_that_of_float64, case, "check") for case in acted),
            *(partial(activation.test_the_backward_is_that_of_float64, case, 2, "check") for case in acted),
            partial(
                activation.test_the_gradient_may_lie_where_that_of_the_result_lay,
                activation.Case(bf16, True, 3, 5, 40, True),
                "check",
            ),
            partial(beside.test_sums_of_an_activation_leave_their_neighbours_alone, 40, "check"),
        ],
        "reduce.cu": [
            partial(reduce.test_partial_sums_add_up_to_those_of_the_columns, 33, 40, 2, bf16, "check"),
            partial(reduce.test_partial_sums_add_up_to_those_of_the_columns, 5, 264, 3, f32, "check"),
            partial(
                reduce.test_the_sums_of_all_parts_go_each_to_its_vector,
                3,
                [24, 8, 16, 8, 8, 8, 8, 8],
                bf16,
                f32,
                "check",
            ),
            partial(
                reduce.test_the_sums_of_all_parts_go_each_to_its_vector,
                40,
                [30, 1, 33, 2, 3, 4, 2, 64],
                f32,
                f32,
                "check",
            ),
        ],
    }
