"""Writes the golden drafters of Gemma 4, tests/golden/drafters, with transformers.

    pip install torch==2.14.1 transformers==5.24.0 safetensors
    python tests/golden/make_drafters.py

Each folder has a `gemma4_assistant` with random weights for another golden folder, its target, and
golden.safetensors:

    prompt [T] int64        the prompt
    greedy [N] int64        what the target writes with the drafter, which is what it writes without
    known.I [n] int64       the tokens of a text, the last of which the target has not run
    drafts.I [K] int64      what the drafter proposes after them
    logits.I [K, V]         its logits

The drafts are computed only from the keys and values of the known tokens. In the middle of its own assisted
text, the reference also sees keys and values of wrong drafts. Its first round sees none, so it is compared.
Everything is computed in float32 with eager attention."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.variants_gemma4 import DRAFTERS, DrafterVariant  # noqa: E402

WRITTEN = 30
LEAST_LEAD = 0.02  # the first draft's logit leads the next one by so much that rounding does not decide


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    """A random weight. Its size keeps every term visible in the logits."""
    noise = torch.randn(shape)
    if name.endswith("layer_scalar"):
        return 0.9 + 0.2 * noise.clamp(-2, 2)
    if name.endswith("q_norm.weight"):
        return 0.9 + 0.3 * noise
    if "norm" in name:
        return 1.0 + 0.3 * noise
    return noise * shape[-1] ** -0.5


def states(target: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The state at the last of the tokens, and the keys and values of all of them."""
    with torch.no_grad():
        found = target(ids, output_hidden_states=True, return_shared_kv_states=True, use_cache=True)
    return found.hidden_states[-1][:, -1:], dict(found.shared_kv_states)


def rounds(target: Any, assistant: Any, known: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The drafter's proposals after `known` [1, n], and their logits."""
    state, shared = states(target, known[:, :-1])
    last, position = known[:, -1:], torch.tensor([[known.shape[1] - 1]])
    embed = target.get_input_embeddings()
    drafts, logits = [], []
    for _ in range(count):
        with torch.no_grad():
            found = assistant(
                inputs_embeds=torch.cat([embed(last), state], dim=-1),
                position_ids=position,
                shared_kv_states=shared,
                attention_mask=torch.ones_like(known),
                use_cache=False,
            )
        last, state = found.logits.argmax(dim=-1), found.last_hidden_state
        drafts.append(last[0])
        logits.append(found.logits[0])
    return torch.cat(drafts), torch.cat(logits)


def write(variant: DrafterVariant) -> None:
    folder, source = HERE / "drafters" / variant.name, HERE / variant.target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(variant.config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"num_assistant_tokens": variant.drafts}) + "\n"
    )
    kind = {"dtype": torch.float32, "attn_implementation": "eager"}
    target = transformers.AutoModelForCausalLM.from_pretrained(source, **kind).eval()
    config = transformers.AutoConfig.from_pretrained(folder)
    assistant = transformers.Gemma4AssistantForCausalLM._from_config(config, **kind).eval()
    for seed in range(100):
        torch.manual_seed(zlib.crc32(variant.name.encode()) + seed)
        for name, weight in assistant.state_dict().items():
            if name.endswith("token_ordering"):
                weight.copy_(torch.randperm(len(weight)))
            else:
                weight.copy_(draw(name, weight.shape))
        assistant.tie_weights()
        prompt = torch.randint(5, variant.config["text_config"]["vocab_size"] - 5, (1, variant.tokens))
        if compute(variant, folder, target, assistant, prompt):
            return
    raise SystemExit(f"{variant.name}: no weights are far enough from a tie")


def compute(variant: DrafterVariant, folder: Path, target: Any, assistant: Any, prompt: torch.Tensor) -> bool:
    tensors = {k: v.contiguous() for k, v in assistant.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, report = transformers.Gemma4AssistantForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    loaded = loaded.eval()
    seen: list[torch.Tensor] = []
    hook = loaded.register_forward_hook(lambda module, given, found: seen.append(found.logits[0]))
    options = {"max_new_tokens": WRITTEN, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = target.generate(prompt, **options)
    assisted = target.generate(prompt, assistant_model=loaded, **options)
    hook.remove()
    assert torch.equal(plain, assisted), (plain, assisted)
    golden: dict[str, torch.Tensor] = {"prompt": prompt[0], "greedy": assisted[0, variant.tokens :]}
    for i, length in enumerate((1, 2, 5, WRITTEN)):
        known = assisted[:, : variant.tokens + length]
        drafts, logits = rounds(target, loaded, known, variant.drafts)
        best = logits.topk(2).values
        if (best[:, 0] - best[:, 1]).min() < LEAST_LEAD:
            return False
        if i == 0:
            # The reference's first round is the same, because it has seen no wrong draft.
            assert torch.allclose(torch.cat(seen[: variant.drafts]), logits, atol=1e-5)
        golden |= {f"known.{i}": known[0].clone(), f"drafts.{i}": drafts, f"logits.{i}": logits}
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    return True


if __name__ == "__main__":
    for one in DRAFTERS:
        write(one)
        print(one.name)
