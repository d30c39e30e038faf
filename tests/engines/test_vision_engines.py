"""Both engines on tiny vision-language models of every supported kind: they see the trainer's pixels, and their
log-probabilities equal the trainer's."""

import copy
import importlib.util
import itertools
import json
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import byte_tokenizer
from tiny_engines import adapted, change_adapters
from tiny_environments import Shows
from tiny_vlms import (
    KINDS,
    QWEN,
    differences,
    make_prompt,
    mixed_prompts,
    picture,
    save_with_videos,
    slow,
    write_clip,
)
from transformers import AutoTokenizer

from lit_rlvr.datamodules import Geometry
from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.images import ImageOptions, open_images
from lit_rlvr.engines.base import EngineContext, RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.server import VLLMServerEngine
from lit_rlvr.engines.transfer import FileTransfer
from lit_rlvr.engines.vllm import Renderer, VLLMEngine
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels, Video, kinds_of
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_image_processor, load_policy, save_model
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.episodes import Episodes
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, Sample, ToolResult

SEEDS = [[100 * p + g for g in range(3)] for p in range(3)]


@pytest.fixture(scope="session")
def prompts(any_vlm_folder: Path) -> list[Prompt]:
    return mixed_prompts(any_vlm_folder)


@pytest.fixture
def policy(any_vlm_folder: Path) -> Policy:
    """A policy whose output embedding strongly favours image placeholders."""
    policy = load_policy(str(any_vlm_folder))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[list(policy.placeholder_ids)] *= 20
    return policy


def generate(engine: RolloutEngine, policy: Policy, prompts: list[Prompt]) -> list[list[Completion]]:
    """Sync and sample."""
    engine.sync(policy)
    return engine.generate(prompts, sampling(policy), SEEDS)


def sampling(policy: Policy) -> Sampling:
    return Sampling(max_tokens=6).with_banned(policy.placeholder_ids)


@torch.no_grad()
def change(policy: Policy, relative: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        scale = relative * parameter.std(correction=0).clamp(min=0.1)
        parameter += scale * torch.randn(parameter.shape, generator=generator)


def assert_agrees(policy: Policy, prompts: list[Prompt], groups: list[list[Completion]], tolerance: float) -> None:
    found = differences(policy, prompts, groups, sampling(policy))
    assert max(found.values()) <= tolerance, found
    assert not {*policy.placeholder_ids} & {t for group in groups for c in group for t in c.token_ids}


def test_generation_agrees_with_the_trainer(vlm_context: EngineContext, policy: Policy, prompts: list[Prompt]) -> None:
    engine = HFEngine()
    engine.start(vlm_context)
    assert_agrees(policy, prompts, generate(engine, policy, prompts), 2e-5)


@pytest.mark.slow
def test_vllm_agrees_with_the_trainer_after_every_sync(
    vlm_engine: VLLMEngine, policy: Policy, prompts: list[Prompt]
) -> None:
    """The first sync replaces noise, the second older weights, the third sends merged adapters."""
    assert_agrees(policy, prompts, generate(vlm_engine, policy, prompts), 5e-5)
    change(policy, 0.3)
    with pytest.raises(AssertionError):
        assert_agrees(policy, prompts, vlm_engine.generate(prompts, sampling(policy), SEEDS), 0.1)
    assert_agrees(policy, prompts, generate(vlm_engine, policy, prompts), 5e-5)
    add_adapters(policy.model, Lora(rank=2))
    change(policy, 0.3)
    assert_agrees(policy, prompts, generate(vlm_engine, policy, prompts), 5e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("hf", kind) for kind in QWEN),
        pytest.param("vllm", "qwen3-vl", marks=pytest.mark.slow),
    ],
)
def test_videos_are_those_of_the_trainer(name: str, kind: str, tmp_path: Path) -> None:
    """Next to prompts with images and without."""
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    folder = str(save_with_videos(kind, tmp_path))
    policy, tokenizer, processor = (
        load_policy(folder),
        AutoTokenizer.from_pretrained(folder),
        load_image_processor(folder),
    )
    clip = Video(str(write_clip(tmp_path / "clip.mp4", frames=13)))
    prompts = mixed_prompts(Path(folder))
    for name_of, media in (("clip", [clip]), ("both", [picture(60, 90, seed=1), clip])):
        images = open_images(media, Path(), ImageOptions(video_fps=1.9))
        marks = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
        text = "".join(f"a<|vision_start|>{marks[kind]}<|vision_end|>" for kind in kinds_of(media)) + "b"
        ids = processor.expand(tokenizer(text).input_ids, processor.placeholders_of(images))
        prompts.append(Prompt(Sample(name_of, "?", "1"), ids, processor.pixels(images)))
    engine: RolloutEngine = HFEngine() if name == "hf" else VLLMEngine(enforce_eager=True)
    engine.start(EngineContext(folder, policy, tokenizer, 384, 64, 0, max_images=2, max_videos=1))
    try:
        engine.sync(policy)
        groups = engine.generate(prompts, sampling(policy), [[100 * p + g for g in range(3)] for p in range(5)])
        assert_agrees(policy, prompts, groups, 5e-5)
    finally:
        engine.close()


def test_videos_are_not_sent_to_servers(vlm_folder: Path, tmp_path: Path) -> None:
    policy = load_policy(str(vlm_folder))
    context = EngineContext(
        str(vlm_folder), policy, AutoTokenizer.from_pretrained(vlm_folder), 384, 64, 0, max_videos=1
    )
    with pytest.raises(UserError, match="frames are not sent to vLLM servers; for videos, use vllm or hf"):
        VLLMServerEngine(["http://127.0.0.1:9"], FileTransfer(tmp_path)).start(context)


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=pytest.mark.slow)])
def test_images_are_observed(
    name: str, vlm_context: EngineContext, policy: Policy, prompts: list[Prompt], request: pytest.FixtureRequest
) -> None:
    """The engine's log-probabilities are those of one plain sequence with all its images, and so are the trainer's,
    with shared prompts and without."""
    engine: RolloutEngine = HFEngine() if name == "hf" else request.getfixturevalue("vlm_engine")
    if name == "hf":
        engine.start(vlm_context)
    engine.sync(policy)
    processor = load_image_processor(vlm_context.folder)
    between = BetweenTurns(Chat(), vlm_context.tokenizer, policy.eos_token_ids, "user", lambda: processor)
    turns = Episodes(Shows(), between)
    ends = tuple(string.ascii_letters)  # random models seldom end by themselves
    limits = replace(sampling(policy), max_tokens=12, max_turns=4, max_observation_tokens=100, stop=ends)
    groups = engine.generate(prompts, limits, SEEDS, turns=turns)
    turns.close()
    rollout = Rollout.unscored(prompts, groups, limits, group_size=3)
    shown = {0 if c.pixels is None else len(c.pixels.images) for group in groups for c in group}
    assert len(shown) > 1 and max(shown) == 2
    for shared in sorted({policy.shared_prefix, False}):
        policy.shared_prefix = shared
        with torch.no_grad():
            ours = policy.logprobs(rollout, list(range(9)))[0]
        for row, completion in enumerate(c for group in groups for c in group):
            prompt = prompts[row // 3]
            assert list(completion.token_ids).count(processor.family.image_token_id) == sum(
                processor.family.features(image)
                for image in (() if completion.pixels is None else completion.pixels.inputs)
            )
            whole = Prompt(prompt.sample, prompt.token_ids, Pixels.joined([prompt.pixels, completion.pixels]))
            with torch.no_grad():
                expected = slow(policy, whole, completion.token_ids, policy.placeholder_ids)
            own = torch.tensor(completion.from_model)
            assert float((ours[row, : len(own)][own] - expected[own]).abs().max()) < 5e-5
            assert float((torch.tensor(completion.logprobs)[own] - expected[own]).abs().max()) < 2e-4


IMAGE = "{% if part['type'] == 'image' %}"
DROPPED = "{% if part['type'] == 'image' and m['role'] != 'tool' %}"
REFUSED = "{% if m['role'] == 'tool' and m['content'] is not string %}{{ raise_exception('text only') }}{% endif %}"


@pytest.mark.parametrize("any_vlm_folder", ["qwen2.5-vl"], indirect=True)
@pytest.mark.parametrize("change", [DROPPED, REFUSED + IMAGE])
@pytest.mark.parametrize("results", [True, False])
def test_a_template_without_images_in_role_tool_gets_them_in_role_user(
    vlm_context: EngineContext, caplog: pytest.LogCaptureFixture, change: str, results: bool
) -> None:
    tokenizer, processor = copy.copy(vlm_context.tokenizer), load_image_processor(vlm_context.folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(IMAGE, change)
    one = picture(56, 56, 0)

    def seen(role: str, *images: Any) -> str:
        between = BetweenTurns(Chat(), tokenizer, (2,), role, lambda: processor)
        found = [ToolResult("crop", "here", images), ToolResult("look", "there")]
        shown = between.tokens("here", 2, 120, images, found) if results else between.tokens("here", 2, 120, images)
        assert (shown.pixels is not None) == bool(images)
        return str(tokenizer.decode(shown.token_ids))

    assert seen("tool", one) == seen("user", one) and "<|im_start|>user" in seen("tool", one)
    assert "shows no image in role tool, so an observation with images is given in role user" in caplog.text
    assert "<|im_start|>tool" in seen("tool"), "text stays in its role"
    tokenizer.chat_template = vlm_context.tokenizer.chat_template
    assert "<|im_start|>tool" in seen("tool", one)


@pytest.mark.parametrize("any_vlm_folder", ["qwen2.5-vl"], indirect=True)
def test_a_template_that_shows_no_image_is_named_with_the_tool(vlm_context: EngineContext) -> None:
    tokenizer, processor = copy.copy(vlm_context.tokenizer), load_image_processor(vlm_context.folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(IMAGE, "{% if part['type'] == 'video' %}")
    between = BetweenTurns(Chat(), tokenizer, (2,), "tool", lambda: processor)
    results = [ToolResult("crop", "", (picture(56, 56, 0),))]
    with pytest.raises(UserError, match=r"template of .* does not show the image that crop returns; use another"):
        between.tokens("", 2, 120, results=results)


def test_an_image_that_does_not_fit_is_left_out(vlm_context: EngineContext) -> None:
    processor = load_image_processor(vlm_context.folder)
    between = BetweenTurns(Chat(), vlm_context.tokenizer, (0,), "user", lambda: processor)
    seen = between.tokens("look", 5, 120, (picture(420, 420, 0),) * 12)
    assert seen.pixels is None and seen.text == "error: the image does not fit into 120 tokens\nlook"
    assert processor.family.image_token_id not in seen.token_ids and len(seen.token_ids) <= 120


# ---- images of every kind, read from files by a data module ----

COLUMNS = {"prompt": "question", "answer": "answer", "image": "picture", "id": "kind"}


def deep(kind: type) -> Image.Image:
    """Greyscale with 12 significant bits."""
    return Image.fromarray((np.asarray(picture(40, 50, 1).convert("L")).astype(kind) * 16 + 7).astype(kind))


def write_pictures(folder: Path) -> list[str]:
    """One file of each kind; the file name without its extension is the kind."""
    noise = picture(61, 43, 0)
    see_through = noise.copy()
    see_through.putalpha(noise.convert("L"))
    exif = Image.Exif()
    pictures = {
        **{f"{w} x {h}.png": picture(w, h, w) for w, h in ((1, 1), (1, 1000), (1000, 1), (3, 5), (57, 83), (199, 1))},
        "RGB.png": noise, "RGB.jpg": noise, "RGB.webp": noise, "CMYK.jpg": noise.convert("CMYK"),
        "greyscale.png": noise.convert("L"), "black and white.png": noise.convert("1"), "RGBA.png": see_through,
        "greyscale with alpha.png": see_through.convert("LA"), "palette.png": noise.quantize(32),
        "palette with transparency.gif": noise.quantize(32), "16 bit.png": deep(np.uint16),
        "32 bit.tiff": deep(np.int32), "float.tiff": deep(np.float32),
    }  # fmt: skip
    for name, image in pictures.items():
        image.save(folder / name, **({"transparency": 3} if name.endswith("gif") else {}))
    for orientation in (3, 6, 8):
        exif[0x0112] = orientation
        noise.save(folder / f"rotated {orientation}.jpg", exif=exif)
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def pictures(any_vlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """A training batch with every picture once."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "pictures").mkdir()
    names = write_pictures(folder / "pictures")
    rows = [{"kind": n, "question": "<image>How long?", "answer": "1", "picture": f"pictures/{n}"} for n in names]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Geometry(train=str(folder / "train.jsonl"), columns=COLUMNS, prompts_per_rollout=len(rows))
    data.tokenizer = AutoTokenizer.from_pretrained(any_vlm_folder)
    data.image_processor = load_image_processor(str(any_vlm_folder))
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(prompt.sample.id for prompt in batch.prompts) == names, "none is refused"
    return batch.prompts


def largest_differences(engine: RolloutEngine, context: EngineContext, prompts: list[Prompt]) -> dict[str, float]:
    policy = load_policy(context.folder)
    engine.sync(policy)
    sampling = Sampling(max_tokens=8).with_banned(policy.placeholder_ids)
    seeds = [[10 * p, 10 * p + 1] for p in range(len(prompts))]
    return differences(policy, prompts, engine.generate(prompts, sampling, seeds), sampling)


def test_hugging_face_sees_the_pictures_of_the_trainer(vlm_context: EngineContext, pictures: list[Prompt]) -> None:
    engine = HFEngine()
    engine.start(vlm_context)
    found = largest_differences(engine, vlm_context, pictures)
    assert max(found.values()) <= 5e-5, found


@pytest.mark.slow
def test_vllm_sees_the_pictures_of_the_trainer(
    vlm_context: EngineContext, vlm_engine: VLLMEngine, pictures: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = largest_differences(vlm_engine, vlm_context, pictures)
    assert max(found.values()) <= 5e-5, found
    sampling = Sampling(max_tokens=8).with_banned(load_policy(vlm_context.folder).placeholder_ids)
    seeds = [[p] for p in range(len(pictures))]
    together = vlm_engine.generate(pictures, sampling, seeds)
    generates_while_it_renders(vlm_engine, monkeypatch)
    apart = vlm_engine.generate(pictures, sampling, seeds)
    assert [[c.token_ids for c in group] for group in apart] == [[c.token_ids for c in group] for group in together]
    for (a,), (b,) in zip(apart, together, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=5e-5)


def generates_while_it_renders(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an engine on a CPU do as on a GPU; no image but the first is ready before it has generated a token."""
    renderer = engine._llm.llm_engine.renderer
    step, render = engine.step, renderer.render_cmpl
    has_stepped = threading.Event()
    calls = itertools.count()

    def first_step() -> Any:
        outputs = step()
        has_stepped.set()
        return outputs

    def later(prompts: Any) -> Any:
        assert next(calls) == 0 or has_stepped.wait(60), "it waits for all images"
        return render(prompts)

    monkeypatch.setattr(VLLMEngine, "overlaps", True)
    monkeypatch.setattr(engine, "step", first_step)
    monkeypatch.setattr(renderer, "render_cmpl", later)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_on_a_gpu_vllm_generates_while_images_are_prepared(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it waits for all images, so that results do not depend on time."""
    happened: list[str] = []
    has_stepped = threading.Event()
    requests: list[str] = []

    def render(inputs: list[str]) -> list[str]:
        assert not on_gpu or inputs == ["a"] or has_stepped.wait(60), "it waits for all images"
        happened.extend(inputs)
        return inputs

    def step() -> list[Any]:
        happened.append("step")
        has_stepped.set()
        sampled = SimpleNamespace(
            token_ids=[5], logprobs=SimpleNamespace(token_ids=[5], logprobs=[-1.0]), finish_reason="length"
        )
        return [SimpleNamespace(request_id=requests.pop(), outputs=[sampled])]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    engine = VLLMEngine()
    policy: Any = SimpleNamespace(replays_routes=False)
    engine._context = EngineContext.in_place(policy, byte_tokenizer(), 3)
    engine._llm = SimpleNamespace(
        llm_engine=SimpleNamespace(
            renderer=SimpleNamespace(render_cmpl=render),
            add_request=lambda name, *_, **__: requests.append(name) or name,
            has_unfinished_requests=lambda: bool(requests),
            engine_core=None,
        )
    )
    monkeypatch.setattr(engine, "step", step)
    monkeypatch.setattr(engine, "as_input", lambda prompt: prompt.sample.id)
    monkeypatch.setattr(engine, "_parameters", lambda *_: None)
    prompts = [Prompt(Sample(name, "", ""), [1], Pixels((), (), ())) for name in "abc"]
    groups = engine.generate(prompts, Sampling(max_tokens=1), [[0], [1], [2]])
    assert [completion.token_ids for (completion,) in groups] == [(5,)] * 3
    assert (happened[:2] == ["a", "step"]) if on_gpu else (happened[:3] == ["a", "b", "c"])


def test_a_later_turn_goes_before_the_images_of_prompts_that_wait() -> None:
    order: list[str] = []
    has_begun = threading.Event()
    may_end = threading.Event()

    class Slow:
        def render_cmpl(self, prompts: list[str]) -> list[str]:
            order.extend(prompts)
            has_begun.set()
            assert may_end.wait(60)
            if prompts == ["broken"]:
                raise ValueError("no image")
            return prompts

    def shown(name: str) -> Prompt:
        return Prompt(Sample(name, "", ""), [1], Pixels((), (), ()))

    renderer = Renderer(Slow(), lambda prompt: prompt.sample.id)
    first = [renderer.begin(shown(name)) for name in ("a", "b", "broken")]
    assert has_begun.wait(60)
    with ThreadPoolExecutor(1) as engine:
        turn = engine.submit(renderer.render, shown("turn"))
        while len(renderer._waiting) < 3:
            time.sleep(0.001)
        may_end.set()
        assert turn.result(60) == "turn"
    assert [future.result(60) for future in first[:2]] == ["a", "b"]
    with pytest.raises(ValueError, match="no image"):
        first[2].result(60)
    assert order == ["a", "turn", "b", "broken"]
    renderer.close()


# The last tests: when their engines end, so does the process group of every vLLM in this process.
@pytest.mark.parametrize("any_vlm_folder", ["qwen2.5-vl"], indirect=True)
@pytest.mark.slow
def test_vllm_adds_adapters_to_the_language_model(
    in_vllm: None, any_vlm_folder: Path, vlm_context: EngineContext, prompts: list[Prompt]
) -> None:
    policy, engine = adapted(any_vlm_folder), VLLMEngine(enforce_eager=True, adapters=True)
    engine.start(replace(vlm_context, policy=policy))
    for seed in (1, 2):
        assert_agrees(policy, prompts, generate(engine, policy, prompts), 5e-5)
        change_adapters(policy, seed)
    assert engine._request.lora_int_id == 2
    engine.close()


@pytest.mark.parametrize("any_vlm_folder", ["smolvlm2"], indirect=True)
@pytest.mark.slow
def test_vllm_loads_an_exported_folder(
    in_vllm: None, vlm_context: EngineContext, policy: Policy, prompts: list[Prompt], tmp_path: Path
) -> None:
    """With vLLM's own loader, without a sync."""
    folder = save_model(policy.model, vlm_context.folder, tmp_path / "out")
    engine = VLLMEngine(options={"load_format": "auto"})
    try:
        engine.start(replace(vlm_context, folder=str(folder)))
        assert_agrees(policy, prompts, engine.generate(prompts, sampling(policy), SEEDS), 5e-5)
    finally:
        engine.close()


@pytest.mark.exhaustive
def test_vllm_takes_the_text_of_a_model_whose_images_it_computes_differently(tmp_path: Path) -> None:
    folder = KINDS["gemma4-vision"](tmp_path)
    policy, processor = load_policy(str(folder)), load_image_processor(str(folder))
    context = EngineContext(str(folder), policy, AutoTokenizer.from_pretrained(folder), 384, 64, 0, max_images=0)
    engine = VLLMEngine(enforce_eager=True)
    for other in (engine, VLLMServerEngine(["http://127.0.0.1:9"], FileTransfer(tmp_path))):
        with pytest.raises(
            UserError, match=r"rollout.engine: images of Gemma . are supported by .* use rollout.engine: hf"
        ):
            other.start(replace(context, max_images=1))
    engine.start(context)
    try:
        text = [make_prompt(processor, str(p)) for p in range(3)]
        assert_agrees(policy, text, generate(engine, policy, text), 5e-5)
    finally:
        engine.close()
