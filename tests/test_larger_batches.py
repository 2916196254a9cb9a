"""Batches larger than a process: samples of other ranks, in spawned processes."""

import json

import pytest
import torch

import larger_batches_worker as worker

IN_BOTH = ("equal_one_process", "equal_one_process_attached", "stay_silent_in_evaluation")
IN_TWO = (
    *IN_BOTH,
    "train_in_a_static_graph",
    "train_with_checkpoints",
    "train_sharded",
    "train_compiled",
    "refuse_what_differs",
    "draw_masks_of_their_own",
)
TAKE_LONG = ["batchformer", "pytest", "timm.models.vision_transformer", "torch.distributed.fsdp"]
WORLDS = {2: IN_TWO, 3: IN_BOTH}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each rank of each world raised, by work: processes take long to start, so they do all.

    They are forks of one that has imported what takes long, and has run nothing.
    """
    torch.multiprocessing.set_forkserver_preload(TAKE_LONG)
    found = {}
    for world_size, works in WORLDS.items():
        folder = tmp_path_factory.mktemp("ranks")
        torch.multiprocessing.start_processes(
            worker.run, (works, world_size, folder), nprocs=world_size, start_method="forkserver"
        )
        found[world_size] = [json.loads((folder / f"{r}.json").read_text()) for r in range(world_size)]
    return found


def check(outcomes, work):
    ran = [
        (size, rank, each[work])
        for size, of in outcomes.items()
        for rank, each in enumerate(of)
        if work in each
    ]
    assert ran
    failed = [f"rank {rank} of {size}: {raised}" for size, rank, raised in ran if raised]
    assert not failed, "\n".join(failed)


def test_ranks_that_gather_train_as_one_process_with_the_whole_batch(outcomes):
    check(outcomes, "equal_one_process")


def test_attached_models_train_as_one_process_with_the_whole_batch(outcomes):
    check(outcomes, "equal_one_process_attached")


def test_a_static_graph_and_accumulated_gradients_are_those_of_one_process(outcomes):
    check(outcomes, "train_in_a_static_graph")


def test_sharded_models_train_as_one_process(outcomes):
    check(outcomes, "train_sharded")


def test_a_checkpoint_gathers_again_what_it_gathered(outcomes):
    check(outcomes, "train_with_checkpoints")


def test_a_compiled_step_gathers_and_remembers(outcomes):
    check(outcomes, "train_compiled")


def test_what_differs_between_ranks_raises_on_all_of_them(outcomes):
    check(outcomes, "refuse_what_differs")


def test_with_equal_random_states_ranks_draw_masks_of_their_own(outcomes):
    check(outcomes, "draw_masks_of_their_own")


def test_in_evaluation_nothing_is_exchanged(outcomes):
    check(outcomes, "stay_silent_in_evaluation")
