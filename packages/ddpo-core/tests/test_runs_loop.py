"""Training a run as a generator of events, on a real, tiny Stable Diffusion; no command line."""

import json
import shutil
import tomllib
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpo_core import DDPOError, Processes, PromptSet, ema_params, evaluate, stable_diffusion_policy
from ddpo_core.diffusion.models import choose_dtype
from ddpo_core.runs.config import read_run_config
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.events import Epoch, Finished, Noted, Saved, tqdm_progress
from ddpo_core.runs.folder import read_model_record
from ddpo_core.runs.log import read_metrics
from ddpo_core.runs.loop import resume, train
from ddpo_core.runs.model import find_model
from ddpo_core.runs.parts import Parts, load_parts, make_objective, make_optimizer
from ddpo_core.runs.rescue import rescue_of

QUICK = {
    "model": "a tiny one", "reward": "brightness", "epochs": 2, "eval_samples": 4, "grid_samples": 2, "sample_every": 1,
    "checkpoint_every": 1, "guidance_scale": 1.0, "evidence_samples": 4,
    "fit": {"num_steps": 2, "samples_per_epoch": 4, "updates_per_epoch": 1, "sample_batch_size": 4,
            "micro_batch_size": 4},
}  # fmt: skip
PROMPTS = PromptSet(("a fox", "a bear", "a cat"), ({}, {}, {}))


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3)), {}


class Scripted:
    """A reward that says what its script says at every call, and repeats the last; it counts how often it is asked."""

    def __init__(self, *script):
        self.script, self.calls = script, 0

    def __call__(self, images, prompts, metadata):
        self.calls += 1
        said = self.script[min(self.calls, len(self.script)) - 1]
        if isinstance(said, BaseException):
            raise said
        return torch.full((len(images),), float(said)), {}


@pytest.fixture(scope="module")
def policy(make_pipeline):
    return stable_diffusion_policy(make_pipeline(), guidance_scale=1.0, lora_rank=2, device="cpu")


@pytest.fixture(scope="module")
def make(policy):
    """Make the arguments that all runs here share: the policy is loaded once."""

    def made(given=None):
        config = run_config({**QUICK, **(given or {})})
        return config, Parts(policy, PROMPTS, make_optimizer(config), make_objective(config.objective))

    return made


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(make, output="run", reward=brightness, given=None, **more):
    config, parts = make(given)
    return train(config, reward, output=output, parts=parts, **more)


def go_on(make, target="run", reward=brightness, given=None, **more):
    config, parts = make(given)
    return resume(target, reward, config=config, parts=parts, **more)


def kinds(events):
    return [type(event).__name__ for event in events]


def one(events, kind):
    (found,) = [event for event in events if isinstance(event, kind)]
    return found


def rows(run="run"):
    """The epochs of a run without what the clock decides, and without pictures that another end leaves out."""
    left_out = ("seconds", "samples_reward_mean")
    return [{key: row[key] for key in row if not key.startswith(left_out)} for row in read_metrics(Path(run))]


def params(run, epoch):
    return load_file(Path(run) / f"checkpoints/epoch-{epoch:06d}/params.safetensors")


def sums_of(leaves):
    """One number per tensor, whatever its name: the names of an export are diffusers' own."""
    return sorted(float(leaf.double().sum()) for leaf in leaves.values())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """Three epochs in one go: the run that others are compared with."""
    run = tmp_path_factory.mktemp("whole") / "run"
    seen = []
    events = list(start(make, run, given={"epochs": 3}, progress=lambda *told: seen.append(told)))
    return run, events, seen


def test_a_run_tells_what_it_does_in_order(whole):
    run, events, progress = whole
    epoch = ["Epoch", "Drawn", "Saved"]
    assert kinds(events) == ["Started", "Drawn", *epoch, *epoch, "Epoch", "Saved", "Drawn", "Finished"]
    started, finished = events[0], events[-1]
    assert (started.run, started.epoch, started.rewards) == (run, 0, ())
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert [(event.info.epoch, event.state.epoch, event.row["queries"]) for event in epochs] == [
        (1, 1, 4), (2, 2, 8), (3, 3, 12)
    ]  # fmt: skip
    assert {phase for phase, _, _ in progress} == {"evaluating", "sampling", "training"}
    assert (finished.epoch, finished.trained, finished.halted) == (3, 3, None)
    assert finished.report == run / "report.html"
    assert (finished.before, finished.after) == (events[1].reward_mean, events[-2].reward_mean)


def test_a_run_is_a_folder_with_everything_in_it(whole):
    run, _, _ = whole
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        ".lock", "base.safetensors", "config.toml", "evaluation.json", "metrics.jsonl", "model.json", "samples.jsonl",
        "report.html", *(f"samples/extremes-000{epoch}.png" for epoch in (1, 2, 3)),
        *(f"lora/{name}" for name in ("pytorch_lora_weights.safetensors", "README.md", "reward.png")),
        "lora/before-after.png",
        *(f"samples/{name}.png" for name in ("epoch-0000", "epoch-0001", "epoch-0002", "epoch-0003", "before-after")),
        "samples/series.webp",
        *(
            f"checkpoints/epoch-00000{epoch}/{name}"
            for epoch in (1, 2, 3)
            for name in ("params.safetensors", "optimizer.safetensors", "state.json")
        ),
    }  # fmt: skip
    assert (read_model_record(run).epoch, json.loads((run / "evaluation.json").read_text())["epoch"]) == (3, 3)


def test_a_report_that_cannot_be_written_is_no_reason_to_fail(make):
    seen = []
    for event in start(make, given={"epochs": 1}):
        seen.append(event)
        Path("run/report.html").mkdir(exist_ok=True)  # in the place of the file
    assert one(seen, Finished).report is None
    assert [event.text.partition(": ")[0] for event in seen if isinstance(event, Noted)] == [
        "report.html cannot be written"
    ]


def test_the_configuration_is_written_with_the_dtype_that_the_device_decided(whole):
    run, _, _ = whole
    written = tomllib.loads((run / "config.toml").read_text())
    chosen = str(choose_dtype(None, torch.device("cpu"))).removeprefix("torch.")
    assert (written["dtype"], written["versions"]["device"]) == (chosen, "cpu")
    assert read_run_config(run).dtype == chosen


def test_a_run_that_goes_on_ends_bit_for_bit_as_if_it_had_never_stopped(make, whole):
    run, _, _ = whole
    list(start(make, given={"epochs": 2}))
    events = list(go_on(make, given={"epochs": 3}))
    assert same(params(run, 3), params("run", 3))
    assert rows() == rows(run)
    scores = [json.loads((folder / "evaluation.json").read_text()) for folder in (Path("run"), run)]
    assert scores[0] == scores[1]
    assert (events[0].epoch, events[-1].trained) == (2, 1)


AVERAGED = {"ema_decay": 0.75, "learning_rate": 0.02, "learning_rate_cosine": 2, "learning_rate_warmup": 1}


def test_a_run_with_a_schedule_and_an_average_goes_on_bit_for_bit(make):
    list(start(make, "whole", given={**AVERAGED, "epochs": 3}))
    list(start(make, given={**AVERAGED, "epochs": 2}))
    list(go_on(make, given={**AVERAGED, "epochs": 3}))
    for name in ("params", "optimizer"):
        file = f"checkpoints/epoch-000003/{name}.safetensors"
        assert Path("run", file).read_bytes() == Path("whole", file).read_bytes()
    assert rows() == rows("whole")


def test_what_is_evaluated_drawn_and_exported_is_the_average_where_there_is_one(make, policy):
    given = {**AVERAGED, "held_out": "judge", "evidence_samples": 0}
    events = list(start(make, given=given, held_out={"judge": brightness}))
    list(start(make, "without", given={key: given[key] for key in given if key != "ema_decay"},
               held_out={"judge": brightness}))  # fmt: skip
    last = [event for event in events if isinstance(event, Epoch)][-1].state
    average = ema_params(last.opt_state)
    assert not same(average, last.params)
    # Training itself goes on without: the first epochs of both are the same.
    assert same(params("run", 2), params("without", 2))
    assert sums_of(load_file("run/lora/pytorch_lora_weights.safetensors")) == sums_of(average)
    prompts = [PROMPTS.prompts[place % 3] for place in range(4)]
    drawn = evaluate(policy, average, brightness, prompts, num_steps=2, seeds=range(4), batch_size=4)
    assert events[-1].after == pytest.approx(float(drawn.scores.mean()), abs=1e-7)
    assert rows()[-1]["held_out"]["judge"] == pytest.approx(events[-1].after, abs=1e-7)
    assert rows()[-1]["held_out"] != rows("without")[-1]["held_out"]
    assert Path("run/samples/epoch-0001.png").read_bytes() != Path("without/samples/epoch-0001.png").read_bytes()


def test_a_run_starts_from_a_saved_lora_keeps_it_and_goes_on_bit_for_bit_wherever_both_are_now(pipeline_folder):
    quick = {**QUICK, "model": pipeline_folder, "prompts": "simple_animals", "device": "cpu"}
    list(train(run_config({**quick, "lora_rank": 3, "lora_alpha": 6.0, "learning_rate": 0.02}), brightness, output="a"))
    given = {**quick, "lora": "a/lora", "learning_rate": 0.02}
    whole = list(train(run_config({**given, "epochs": 3}), brightness, output="whole"))
    assert whole[1].reward_mean == pytest.approx(json.loads(Path("a/evaluation.json").read_text())["mean"]["after"])
    list(train(run_config(given), brightness, output="b"))
    assert load_parts(read_run_config(Path("b"))).policy.lora_scale == 2.0
    shutil.rmtree("a")
    Path("b").rename("c")
    assert read_run_config(Path("c")).lora == str(Path("c/start"))
    events = list(resume("c", brightness, config=read_run_config(Path("c")).model_copy(update={"epochs": 3})))
    assert same(params("c", 3), params("whole", 3))
    assert rows("c") == rows("whole")
    assert events[1].reward_mean == whole[1].reward_mean
    assert tomllib.loads(Path("c/config.toml").read_text())["lora"] == str(Path("c/start"))
    card = Path("c/lora/README.md").read_text()
    assert "| trained | a LoRA, from a saved one on |" in card


@pytest.mark.parametrize("stop", ["break", "thrown in", "raised by the reward"])
def test_whatever_ends_a_run_the_last_whole_epoch_is_saved_and_goes_on_bit_for_bit(make, whole, stop):
    run, _, _ = whole
    given = {"epochs": 3, "checkpoint_every": 100, "evidence_samples": 0}
    # Called before training, in epoch 1, for its picture, and in epoch 2.
    reward = Scripted(0, 0, 0, KeyError("weights")) if stop == "raised by the reward" else brightness
    events = start(make, given=given, reward=reward)
    if stop == "break":
        for event in events:
            if isinstance(event, Epoch):
                break
        del events, event
    elif stop == "thrown in":
        next(event for event in events if isinstance(event, Epoch))
        with pytest.raises(KeyboardInterrupt) as caught:
            events.throw(KeyboardInterrupt())
    else:
        with pytest.raises(KeyError) as caught:
            list(events)
    if stop != "break":
        rescue = rescue_of(caught.value)
        assert rescue is not None
        assert (rescue.epoch, rescue.checkpoint) == (1, Path("run/checkpoints/epoch-000001"))
        assert caught.value.__notes__ == ["Epoch 1 is saved in run/checkpoints/epoch-000001; it can be resumed."]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["epoch-000001"]
    if reward is brightness:
        list(go_on(make, given=given))
        assert same(params(run, 3), params("run", 3))


def test_an_epoch_whose_picture_fails_is_computed_again(make, whole):
    run, _, _ = whole
    failing = {"brightness": 0}

    def reward(images, prompts, metadata):
        failing["brightness"] += 1
        if failing["brightness"] == 5:  # the picture of epoch 2
            raise ValueError("no power")
        return brightness(images, prompts, metadata)

    with pytest.raises(ValueError, match="no power") as caught:
        list(start(make, reward=reward, given={"epochs": 3}))
    assert rescue_of(caught.value).epoch == 1
    assert [row["epoch"] for row in rows()] == [1]
    list(go_on(make, given={"epochs": 3}))
    assert same(params(run, 3), params("run", 3))
    assert rows() == rows(run)


def test_a_run_that_fails_at_once_is_saved_at_its_beginning(make):
    with pytest.raises(DDPOError, match="of shape") as caught:
        list(start(make, reward=lambda images, prompts, metadata: (torch.zeros(1), {})))
    assert rescue_of(caught.value).epoch == 0


def test_where_nothing_can_be_written_that_is_what_is_said(make):
    events = start(make, given={"checkpoint_every": 100, "evidence_samples": 0})
    next(event for event in events if isinstance(event, Epoch))
    Path("run/checkpoints").write_text("in the way")
    with pytest.raises(KeyboardInterrupt) as caught:
        events.throw(KeyboardInterrupt())
    rescue = rescue_of(caught.value)
    assert (rescue.epoch, rescue.checkpoint) == (1, None)
    assert "cannot be written" in str(rescue.failure)


def test_going_back_to_a_checkpoint_deletes_nothing_and_a_finished_run_may(make, whole):
    run, _, _ = whole
    list(start(make, given={"epochs": 3}))
    events = list(go_on(make, "run/checkpoints/epoch-000001", given={"epochs": 2}))
    assert "moved to run/superseded/0001" in one(events, Noted).text
    kept = Path("run/superseded/0001")
    assert same(params(kept, 3), params(run, 3))
    assert [row["epoch"] for row in read_metrics(kept)] == [2, 3]
    assert (kept / "evaluation.json").exists()
    assert [row["epoch"] for row in rows()] == [1, 2]
    assert (events[-1].epoch, events[-1].trained) == (2, 1)


def test_a_finished_run_says_so_and_is_left_alone(make, whole):
    run, _, _ = whole
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(DDPOError, match=r"is finished: 3 of 3 epochs; for more, resume it with epochs=6"):
        list(go_on(make, run, given={"epochs": 3}))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_was_drawn_before_training_is_not_drawn_again(make):
    reward = Scripted(0.5)
    given = {"sample_every": 100, "evidence_samples": 0}
    list(start(make, reward=reward, given=given))
    assert reward.calls == 1 + 2 + 1  # before, two epochs, after
    events = list(go_on(make, reward=reward, given={**given, "epochs": 3}))
    assert reward.calls == 4 + 1 + 1
    assert (events[1].epoch, events[1].reward_mean) == (0, 0.5)


def test_another_process_cannot_go_on_while_a_run_is_trained(make):
    events = start(make)
    next(event for event in events if isinstance(event, Saved))
    with pytest.raises(DDPOError, match="another process trains"):
        next(go_on(make, given={"epochs": 3}))
    events.close()


def test_rewards_that_are_held_out_are_named_in_the_configuration(make):
    with pytest.raises(DDPOError, match=r"held_out has the rewards 'judge', config\.held_out names none"):
        next(start(make, held_out={"judge": brightness}))
    assert not Path("run").exists()


def test_a_held_out_reward_that_is_the_optimised_one_is_paid_once(make):
    reward = Scripted(0.5)
    given = {"held_out": "same", "evidence_samples": 0}
    list(start(make, reward=reward, given=given, held_out={"same": reward}))
    assert reward.calls == 1 + 2 * 1 + 2 * 1 + 1
    assert [row["held_out"] for row in rows()] == [{"same": 0.5}, {"same": 0.5}]


def test_what_a_reward_learns_is_saved_with_the_checkpoints(make):
    class Counting:
        def __init__(self):
            self.seen = 0

        def __call__(self, images, prompts, metadata):
            self.seen += len(images)
            return images.mean((1, 2, 3)) * self.seen, {}

        def state(self):
            return {"seen": self.seen}

        def load_state(self, state):
            self.seen = state["seen"]

    given = {"sample_every": 100, "evidence_samples": 0, "keep_last": 1}
    list(start(make, "whole", Counting(), given={**given, "epochs": 3}))
    # Stopped after epoch 2, before the evaluation at the end asks the reward once more.
    events = start(make, "parts", Counting(), given={**given, "epochs": 3})
    assert next(event for event in events if isinstance(event, Epoch) and event.info.epoch == 2)
    events.close()
    assert json.loads(Path("parts/reward.json").read_text())["2"] == {"reward": {"seen": 4 + 2 * 4}}
    list(go_on(make, "parts", Counting(), given={**given, "epochs": 3}))
    assert rows("parts") == rows("whole")
    assert same(params("parts", 3), params("whole", 3))


# Asked before training and then once an epoch: best in epoch 3, and falling from epoch 9 on.
FALLING = [0.1 * (call % 2) + (1.0 if call == 4 else 0.0) - max(0, call - 9) for call in range(1, 100)]


def test_a_run_that_is_broken_off_after_it_was_rolled_back_is_where_it_was_rolled_back_to(make):
    given = {
        "epochs": 20, "held_out": "judge", "on_hack": "rollback", "sample_every": 100, "evidence_samples": 0,
        "keep_last": 2, "checkpoint_every": 100,
    }  # fmt: skip

    def break_off(phase, done, total):
        if Path("run/superseded").exists():
            raise KeyboardInterrupt

    held_out = {"judge": Scripted(*FALLING)}
    with pytest.raises(KeyboardInterrupt) as caught:
        list(start(make, reward=Scripted(*range(100)), given=given, held_out=held_out, progress=break_off))
    assert rescue_of(caught.value).checkpoint == Path("run/checkpoints/epoch-000003")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["epoch-000003"]


@pytest.mark.parametrize("on_hack", ["stop", "rollback"])
def test_a_gamed_run_ends_with_its_best_model(make, on_hack):
    given = {
        "epochs": 20, "held_out": "judge", "on_hack": on_hack, "sample_every": 100, "evidence_samples": 0,
        "keep_last": 2, "checkpoint_every": 100,
    }  # fmt: skip
    events = list(start(make, reward=Scripted(*range(100)), given=given, held_out={"judge": Scripted(*FALLING)}))
    finished, last = events[-1], rows()[-1]
    assert 11 <= last["epoch"] < 20
    assert (finished.halted.status, finished.epoch, finished.best) == ("hacked", 3, 3)
    assert read_model_record(Path("run")) == (3, 3)
    assert find_model(Path("run"))[1].name == "epoch-000003"
    exported = load_file("run/lora/pytorch_lora_weights.safetensors")
    total = sum(float(leaf.double().sum()) for leaf in params("run", 3).values())
    assert sum(float(leaf.double().sum()) for leaf in exported.values()) == pytest.approx(total)
    left = [path.name for path in Path("run/checkpoints").iterdir()]
    if on_hack == "rollback":
        assert left == ["epoch-000003"]
        assert [path.name for path in Path("run/superseded/0001/checkpoints").iterdir()] == [
            f"epoch-{last['epoch']:06d}"
        ]
    else:
        assert sorted(left) == ["epoch-000003", f"epoch-{last['epoch']:06d}"]


def test_the_model_that_the_default_judge_speaks_for_is_saved_even_where_it_is_an_epoch_old(make):
    # The samples of an epoch were drawn by the model of the epoch before, so that is what the evidence judges.
    seen = []
    given = {"epochs": 6, "checkpoint_every": 100, "keep_last": 1, "sample_every": 100}
    for event in start(make, given=given):
        if isinstance(event, Epoch):
            epochs = {int(path.name[6:]) for path in Path("run/checkpoints").glob("epoch-*")}
            seen.append((event.info.epoch, read_model_record(Path("run")).best, epochs))
    assert seen[0][1] is None  # epoch 1 judges the model before training
    for _, best, epochs in seen[1:]:
        assert best is not None
        assert best in epochs
    best = read_model_record(Path("run")).best
    state = json.loads(Path(f"run/checkpoints/epoch-{best:06d}/state.json").read_text())
    assert state["epoch"] == best


def test_a_tracker_that_breaks_is_told_once_and_the_run_goes_on(make, monkeypatch):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def refuse(*_, **__):
        raise OSError("the disk of the tracker is full")

    monkeypatch.setattr(SummaryWriter, "add_scalar", refuse)
    events = list(start(make, given={"tracker": "tensorboard"}))
    assert [event.text for event in events if isinstance(event, Noted)] == [
        "the tracker tensorboard is left out from now on: OSError: the disk of the tracker is full"
    ]
    assert isinstance(events[-1], Finished)


def test_what_is_written_is_announced_before_so_that_it_can_be_finished(make):
    held = []

    class Hold:
        def __init__(self, what):
            held.append(what)

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    list(start(make, hold=Hold))
    assert held == ["the samples before training", "epoch 1", "epoch 2", "the model", "what came of the run"]


def test_other_monitors_are_written_down(make):
    list(start(make, monitors=[lambda state, info, processes: {"queries_seen": float(info.queries)}]))
    assert [row["signals"]["queries_seen"] for row in rows()] == [4.0, 8.0]


def test_processes_that_do_not_write_tell_nothing_and_write_nothing(make):
    # The first process is played by copies of what the second one says.
    second = Processes(1, 2, lambda tensors: tensors, lambda tensor: torch.stack([tensor, tensor]))
    reward = Scripted(0.5)
    assert list(start(make, reward=reward, processes=second)) == []
    assert reward.calls == 2  # its share of both epochs, and no evaluation
    assert not Path("run").exists()


def test_bars_for_a_notebook_follow_the_phases(make, capsys):
    show = tqdm_progress()
    for done in (0, 2, 4):
        show("sampling", done, 4)
    show("training", 1, 2)
    show("training", 1, 3)  # it begins again
    shown = capsys.readouterr().err
    assert "sampling" in shown
    assert "training" in shown
    list(islice(start(make, progress=tqdm_progress(disable=True)), 3))


KEPT = {"keep": ["prompt_margin", "judge>=2"], "epochs": 3}


@pytest.fixture
def small_base(monkeypatch):
    """Levels are measured on 8 samples, which take a second instead of ten."""
    monkeypatch.setattr("ddpo_core.runs.loop.BASE_SAMPLES", 8)


def test_what_is_kept_stands_in_every_row_and_what_cannot_be_kept_is_said_once(make, small_base):
    # Brightness is below 1, so that the level 2 is out of reach.
    config, parts = make({**KEPT, "epochs": 9})
    events = list(train(config, brightness, output="run", parts=parts, kept={"judge": brightness}))
    last = read_metrics(Path("run"))[-1]["kept"]
    assert list(last) == ["prompt_margin", "judge"]
    assert (last["judge"]["level"], last["judge"]["multiplier"]) == (2, 20)
    told = [event.text for event in events if isinstance(event, Noted) and "cannot be kept" in event.text]
    assert len(told) == 1
    assert told[0].startswith("judge cannot be kept: it is 0.")


def test_a_run_that_keeps_something_goes_on_bit_for_bit(make, small_base):
    judge = {"judge": brightness}
    list(start(make, "whole", given=KEPT, kept=judge))
    list(start(make, "run", given={**KEPT, "epochs": 2}, kept=judge))
    list(go_on(make, given=KEPT, kept=judge))
    assert rows() == rows("whole")
    assert same(params("run", 3), params("whole", 3))


def test_rewards_that_are_kept_are_those_that_the_configuration_names(make):
    with pytest.raises(DDPOError, match=r"kept has the rewards none, config\.keep names 'judge'"):
        next(start(make, given=KEPT))
