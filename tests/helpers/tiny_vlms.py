"""Vision-language models of every supported kind, small and random, and the slow way through them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    Idefics3Config,
    LlavaConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from lit_rlvr.engines.synced import trainer_logprobs
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.families.gemma3 import save_tiny_gemma3
from lit_rlvr.policy.families.gemma4 import save_tiny_gemma4
from lit_rlvr.policy.families.glm4v import save_tiny_glm4v
from lit_rlvr.policy.families.internvl import save_tiny_internvl
from lit_rlvr.policy.families.qwen_vl import (
    VLM_SPECIALS,
    QwenVL,
    language_sizes,
    markers,
    save_tiny_qwen3_5,
    save_tiny_vlm,
    save_vlm,
)
from lit_rlvr.policy.families.smolvlm import SPECIALS, save_smolvlm, save_tiny_smolvlm
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.tiny import CHAT_TEMPLATE, LLM_SPECIALS, byte_tokenizer, save_random, tiny_sizes
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Sample

if TYPE_CHECKING:
    from PIL import Image

PAD = VLM_SPECIALS.index("<|image_pad|>")
START, STOP = VLM_SPECIALS.index("<|vision_start|>"), VLM_SPECIALS.index("<|vision_end|>")
AUDIO = "<|audio_pad|>"
SHARP = {"initializer_range": 0.1}
"""Random weights so large that log-probabilities differ by nats between images and between positions."""


def save_qwen2_vl(folder: Path) -> Path:
    """Full attention in the vision tower, an output embedding of its own."""
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "hidden_size": 128, "mlp_ratio": 2, **SHARP}
    return save_vlm(Qwen2VLConfig(text_config=language_sizes(**SHARP), vision_config=vision, **markers(False)), folder)


def save_qwen2_5_vl(folder: Path) -> Path:
    """Attention in windows in the vision tower."""
    return save_tiny_vlm(folder, text=SHARP, vision=SHARP)


def save_qwen3_vl(folder: Path) -> Path:
    """Patches of 16 pixels, interleaved rotary frequencies, features of two vision layers into two text layers."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = language_sizes(num_hidden_layers=3, head_dim=32, rope_parameters=rope, **SHARP)
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        **SHARP,
    }
    return save_vlm(Qwen3VLConfig(text_config=text, vision_config=vision, **markers()), folder)


def save_qwen3_5(folder: Path) -> Path:
    """A gated delta net below full attention; a token for sounds, as the real one has."""
    save_tiny_qwen3_5(folder, text=SHARP | {"vocab_size": len(VLM_SPECIALS) + 257}, vision=SHARP)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": [AUDIO]})
    tokenizer.save_pretrained(folder)
    return folder


def save_smolvlm2(folder: Path) -> Path:
    """Tiles of one feature each, plain positions."""
    return save_tiny_smolvlm(folder, text=SHARP, vision=SHARP)


def save_gemma3(folder: Path) -> Path:
    """Nine features of an image, in windows of sixteen tokens."""
    return save_tiny_gemma3(folder, text=SHARP | {"sliding_window": 16}, vision=SHARP)


def save_gemma4(folder: Path) -> Path:
    """Windows of sixteen tokens, layers with the keys of others, embeddings of each layer, an audio tower."""
    windows = ["sliding_attention", "full_attention"] * 2
    text = {"num_hidden_layers": 4, "layer_types": windows, "sliding_window": 16, "num_kv_shared_layers": 2}
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 48}
    return save_tiny_gemma4(
        folder, seed=1, text=SHARP | text, vision=SHARP | {"use_clipped_linears": True}, audio=audio
    )


def save_gemma4_vision(folder: Path) -> Path:
    """Attention in both directions within images in windows of sixteen tokens, keys that are values."""
    text = {
        "use_bidirectional_attention": "vision",
        "sliding_window": 16,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    }
    return save_tiny_gemma4(folder, text=SHARP | text, vision=SHARP | {"standardize": True})


def save_glm4v(folder: Path) -> Path:
    """Rotations of half of each head, an interpolated table of positions."""
    return save_tiny_glm4v(folder, text=SHARP, vision=SHARP)


def save_internvl3_5(folder: Path) -> Path:
    """Tiles of four features each, an output embedding that is the input's."""
    return save_tiny_internvl(folder, text=SHARP, vision=SHARP | {"image_size": 56}, drawn=())


def save_idefics3(folder: Path) -> Path:
    """Tiles of four features each, an output embedding of its own."""
    text = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(SPECIALS) + 256, "bos_token_id": None,
        "max_position_embeddings": 2048, "eos_token_id": SPECIALS.index("<|im_end|>"), "pad_token_id": 0, **SHARP,
    }  # fmt: skip
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        **SHARP,
    }
    marks = {"image_token_id": SPECIALS.index("<image>"), "pad_token_id": 0}
    return save_smolvlm(Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, **marks), folder)


def save_llava(folder: Path) -> Path:
    """A model whose family is not ours: docs/plugins.md has it. Four patches of an image, each with one feature."""
    specials, side = (*LLM_SPECIALS, "<image>"), 28
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 14,
        **SHARP,
    }
    text = {"model_type": "llama", **tiny_sizes(specials), **SHARP}
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_index=specials.index("<image>"))
    save_random(AutoModelForImageTextToText, config, folder, 0)
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    byte_tokenizer(specials, template, pad="<|endoftext|>").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


QWEN = {"qwen2-vl": save_qwen2_vl, "qwen2.5-vl": save_qwen2_5_vl, "qwen3-vl": save_qwen3_vl, "qwen3.5": save_qwen3_5}
KINDS = QWEN | {
    "smolvlm2": save_smolvlm2,
    "gemma3": save_gemma3,
    "gemma4": save_gemma4,
    "gemma4-vision": save_gemma4_vision,
    "internvl3.5": save_internvl3_5,
    "glm-4.1v": save_glm4v,
}
ALONE = ("qwen3.5", "gemma3", "gemma4", "gemma4-vision")
"""The kinds whose completions do not share a prompt."""
NOT_IN_VLLM = ("qwen3.5", "gemma3", "gemma4-vision")
"""The kinds that vLLM does not compute on a CPU, or whose images it does not compute as the trainer does."""
FAST = ("qwen2.5-vl", "smolvlm2")
"""The kinds that fast tests use."""


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise."""
    from PIL import Image

    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB")


def write_clip(
    path: Path, frames: int = 12, fps: int = 4, size: tuple[int, int] = (84, 56), times: Sequence[int] = ()
) -> Path:
    """Write a video whose frame i has the brightness 20 * i, and stands at times[i] / fps seconds."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            grey = torch.full((size[1], size[0], 3), 20 * i, dtype=torch.uint8).numpy()
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts = times[i] if times else None
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def save_with_videos(kind: str, folder: Path) -> Path:
    """One of `QWEN`, with a video processor of its own as the published models have."""
    made = QWEN[kind](folder / kind)
    images = json.loads((made / "preprocessor_config.json").read_text())
    name = "Qwen3VLVideoProcessor" if kind.startswith("qwen3") else "Qwen2VLVideoProcessor"
    wanted = {"video_processor_type": name, "size": {"shortest_edge": 4096, "longest_edge": 60000}}
    sizes = {name: images[name] for name in ("patch_size", "merge_size", "temporal_patch_size")}
    (made / "video_preprocessor_config.json").write_text(json.dumps(wanted | sizes))
    return made


def make_prompt(processor: ImageProcessor, name: str, *images: Image.Image) -> Prompt:
    """Some text around each image."""
    family = processor.family
    start, stop = ([START], [STOP]) if isinstance(family, QwenVL) else ([], [])
    ids = [10, 11]
    for _ in images:
        ids += [*start, family.prompt_token_id, *stop, 70, 71]
    pixels = processor.pixels(images) if images else None
    ids = [*ids, 12, 13] if pixels is None else processor.expand(ids, pixels.placeholders)
    return Prompt(Sample(name, "?", "1"), ids, pixels)


def mixed_prompts(folder: Path) -> list[Prompt]:
    """One image, none, two of other shapes."""
    processor = load_image_processor(str(folder))
    return [
        make_prompt(processor, "one", picture(84, 84, 0)),
        make_prompt(processor, "none"),
        make_prompt(processor, "two", picture(60, 140, 1), picture(56, 28, 2)),
    ]


def slow(policy: Policy, prompt: Prompt, completion: Sequence[int], banned: Sequence[int] = ()) -> Tensor:
    """One unpadded sequence through the whole model, which finds the positions on its own; its tower attends with
    torch's SDPA, one window at a time."""
    model = policy.model
    ids = torch.tensor([[*prompt.token_ids, *completion]], device=policy.device)
    images = {}
    if prompt.pixels is not None:
        inputs = prompt.pixels.inputs
        images = {name: torch.cat([image[name] for image in inputs]).to(policy.device) for name in inputs[0]}
        marks = (ids == model.config.image_token_id).int()
        if "image_grid_thw" in images or "image_position_ids" in images:
            images["mm_token_type_ids"] = marks
        elif model.config.model_type == "gemma3":
            images["token_type_ids"] = marks
        elif model.config.model_type != "internvl":  # all tiles are images of one sequence
            images["pixel_values"] = images["pixel_values"][None]
    model.model.rope_deltas = None
    ours = model.config.vision_config._attn_implementation
    model.set_attn_implementation({"vision_config": "sdpa"})
    logits = model(ids, use_cache=False, **images).logits[0, len(prompt.token_ids) - 1 : -1].clone()
    model.set_attn_implementation({"vision_config": ours})
    logits[:, list(banned)] = float("-inf")
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


def differences(
    policy: Policy, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], sampling: Sampling
) -> dict[str, float]:
    """{prompt id: the largest difference, in nats, between an engine's log-probabilities and the trainer's}."""
    return {
        prompt.sample.id: max(
            float((torch.tensor(completion.logprobs) - ours).abs().max())
            for completion, ours in zip(group, trainer_logprobs(policy, [prompt], [list(group)], sampling), strict=True)
        )
        for prompt, group in zip(prompts, groups, strict=True)
    }
