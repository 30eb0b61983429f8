"""Nothing waits for the device within a phase: neither sampling nor training reads a number from it."""

import warnings
from contextlib import ExitStack

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpo_core import (
    adamw,
    ddpo_is,
    encode_once,
    init,
    minibatches,
    per_epoch,
    rwr,
    sample_trajectories,
    stable_diffusion_policy,
    train_step,
)
from ddpo_core.sampling import map_rows

PROMPTS = ["a cat", "a dog"]
OPS = torch.ops.aten
# Each of them brings a number of the device to the host: its value, or how much of something there is.
READING = (OPS._local_scalar_dense, OPS.nonzero, OPS.equal, OPS.masked_select, OPS._unique2, OPS.is_nonzero)
# These do so past the dispatcher where the device is the host.
METHODS = tuple(getattr(torch.Tensor, name) for name in ("tolist", "numpy", "cpu", "__array__"))


class Reads(ExitStack):
    """Note every operation that reads from what stands for the device: `tensors`, and all that comes of them.

    Without a GPU everything lies on the host; an optimizer's count of updates does so on a GPU as well.
    """

    def __init__(self, *tensors):
        super().__init__()
        self.found, self.kept, self.device = [], [], set()
        self.mark(tensors)

    def __enter__(self):
        self.enter_context(_Methods(self))
        self.enter_context(_Operations(self))
        return self

    def mark(self, values):
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.device.add(storage._cdata)
                self.kept.append(storage)  # so that no other takes its place

    def holds(self, values):
        tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
        return any(tensor.untyped_storage()._cdata in self.device for tensor in tensors)


class _Methods(TorchFunctionMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS and self.reads.holds(args):
            self.reads.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.reads.holds((args, kwargs)):
            indices = tree_leaves(args[1]) if func.overloadpacket in (OPS.index, OPS.index_put, OPS.index_put_) else ()
            masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
            if func.overloadpacket in READING or masks:
                self.reads.found.append(func.overloadpacket.__name__)
            self.reads.mark(out)
        return out


def test_what_reads_is_noticed_and_what_is_read_on_the_host_is_not():
    here, there = torch.ones(2), torch.ones(2)
    with Reads(there) as reads:
        here.sum().item()
        here[here > 0].tolist()
        assert reads.found == []
        (2 * there).sum().item()
        there.clone()[there > 0]
        bool(torch.isfinite(there).all())
        (3 * there).tolist()
    assert reads.found == ["_local_scalar_dense", "index", "_local_scalar_dense", "tolist"]


@pytest.fixture(scope="module")
def policy(make_pipeline):
    """A model with guidance, whose prompts were met before: encoding one for the first time is no part of a phase."""
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=2.0, device="cpu", dtype=torch.bfloat16)
    policy = policy._replace(encode=encode_once(policy.encode))
    sample_trajectories(policy, policy.params, PROMPTS, num_steps=3, seeds=[0, 1])
    return policy


@pytest.mark.parametrize(
    "objective",
    [ddpo_is(advantages=per_epoch(), kl_weight=0.1, timestep_window=2, timestep_weighting="noise"), rwr()],
    ids=["policy gradient", "regression"],
)
def test_sampling_and_training_read_nothing_from_the_device(policy, objective):
    optimizer, advantages = adamw(1e-3), torch.tensor([1.0, -1.0])
    state = init(policy, optimizer, seed=0)
    frozen = [policy.params, policy.timesteps(3), policy.encode(PROMPTS)]
    drawn = policy.noise([0, 1], 3)
    with Reads(state.params, drawn, *frozen) as sampling:
        sampled = sample_trajectories(
            policy._replace(noise=lambda seeds, num_steps: drawn), state.params, PROMPTS, num_steps=3, seeds=[0, 1]
        )
        policy.decode(sampled.latents[:, -1])
    (minibatch,) = minibatches(2, 1, seed=0, epoch=0)
    rows = objective.choose(policy, sampled, advantages, minibatch)
    with Reads(state.params, sampled, rows, advantages, *frozen) as training:
        after, _ = train_step(
            state, sampled, advantages, rows, policy=policy, optimizer=optimizer, objective=objective,
            micro_batch_size=2, max_grad_norm=1.0,
        )  # fmt: skip
    # Which steps have noise is asked of the table once, before the first of them.
    assert sampling.found == ["tolist"]
    assert training.found == []
    assert any(not torch.equal(after.params[name], leaf) for name, leaf in state.params.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_on_a_gpu_neither_phase_waits_for_it(make_pipeline):
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=2.0, device="cuda")
    policy = policy._replace(encode=encode_once(policy.encode))
    optimizer, objective = adamw(1e-3), ddpo_is(advantages=per_epoch(), timestep_weighting="noise")
    state, advantages = init(policy, optimizer, seed=0), torch.tensor([1.0, -1.0])
    (minibatch,) = minibatches(2, 1, seed=0, epoch=0)

    def sample():
        return sample_trajectories(policy, state.params, PROMPTS, num_steps=3, seeds=[0, 1])

    sampled = sample()  # what is loaded and encoded at the first call may wait
    rows = map_rows(torch.Tensor.cuda, objective.choose(policy, sampled, advantages, minibatch))
    on_device = advantages.cuda()

    def train():
        return train_step(
            state, sampled, on_device, rows, policy=policy, optimizer=optimizer, objective=objective,
            micro_batch_size=2, max_grad_norm=1.0,
        )  # fmt: skip

    train()
    for phase, allowed in ((sample, 1), (train, 0)):  # of the table of steps it is asked once which have noise
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                phase()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert len([line for line in told if "synchronizing CUDA operation" in str(line.message)]) <= allowed
