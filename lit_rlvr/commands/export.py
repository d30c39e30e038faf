"""`lit-rlvr export RUN --to DIR`: writes a run's weights, or adapters merged into their base model, as a Hugging Face
folder."""

from __future__ import annotations

from pathlib import Path

from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser
from lit_rlvr.run.saved_model import export_run


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `export`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument(
        "run", type=str, help="run folder, or one of its checkpoints; or a folder with adapters of peft"
    )
    parser.add_argument("--to", type=str, required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--dtype", type=str, default="float32", help="float32 or bfloat16")
    parser.add_argument("--adapter", action="store_true", help="write only the adapter, as peft does")
    config = parser.parse_args(arguments)
    target = export_run(Path(config.run), Path(config.to), config.dtype, config.adapter)
    if config.adapter:
        loader = "peft, with transformers'"
    else:
        loader = "transformers'"
    show_result(
        {"folder": str(target), "dtype": config.dtype},
        lambda: print(f"{target}: loads with {loader} from_pretrained and with vLLM"),
    )
