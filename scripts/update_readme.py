"""Write the README's tables from benches/results, so that no figure is typed by hand.

    python scripts/update_readme.py [--check]

--check changes nothing and exits 1 when README.md is not what the results say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: scripts/update_readme.py -->", "<!-- end of results -->"

PEERS = {
    "ours": "ours",
    "llama-mmap": "llama.cpp, mapped",
    "llama-read": "llama.cpp, read",
    "accelerate": "accelerate, disk offload",
    "airllm": "AirLLM",
}


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benches/results/{name}.json").read_text("utf-8"))
    return found


def head(columns: str) -> list[str]:
    """The first lines of a table, after what introduces it."""
    return ["", columns, "|---" * (columns.count("|") - 1) + "|"]


def loss_and_kl(found: dict[str, Any]) -> str:
    return f"{found['quality_loss']:+.1f} %, KL {found['kl_mean']:.4f}"


def demo_table() -> str:
    demo = load("demo")
    machine = demo["machine"]
    codecs = demo["codecs"]
    first = next(iter(codecs.values()))
    lines = [
        f"`lsb demo`: {demo['model']}, perplexity {first['perplexity_original']:.2f} before, "
        f"{first['eval_tokens']} tokens of Python's language reference, all bytes counted "
        "([demo.json](benches/results/demo.json)):",
        *head("| codec | bits/weight | size | quality loss | KL | top-1 |"),
    ]
    for name, row in codecs.items():
        lines.append(
            f"| {name} | {row['bits_per_weight']:.2f} | {row['size_bytes'] / 1e6:.1f} MB | "
            f"{row['quality_loss']:+.3g} % | {row['kl_mean']:.4f} | "
            f"{100 * row['top1_agreement']:.1f} % |"
        )
    lines += [
        "",
        f"It answers {demo['prompt']!r} with {demo['answer']!r}. The whole demo took "
        f"{demo['seconds']:.0f} s on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['instruction_set']}).",
    ]
    return "\n".join(lines)


def quality_table() -> str:
    quality = load("quality_smollm2")
    first = quality["rows"][0]
    lines = [
        f"{quality['model']}, linear layers only (embedding and head raw), L=7, calibration "
        f"{quality['calibration']}, {first['eval_tokens']} tokens of {quality['text']}, perplexity "
        f"{first['perplexity_original']:.2f} before "
        "([quality_smollm2.json](benches/results/quality_smollm2.json)):",
        *head("| planes | outliers | quality loss | KL mean | KL median | top-1 |"),
    ]
    for row in quality["rows"]:
        lines.append(
            f"| {row['planes']} | {100 * row['outlier_ratio']:g} % | "
            f"{row['quality_loss']:+.1f} ± {row['quality_loss_stderr']:.1f} % | "
            f"{row['kl_mean']:.4f} | {row['kl_median']:.4f} | {100 * row['top1_agreement']:.1f} % |"
        )
    before = "Both tables are from before [decision 12](docs/decisions/0012-guidance.md)."
    return "\n".join([*lines, "", before])


def size_table() -> str:
    study = load("quality_qwen")
    texts = study["points"][0]["texts"]
    lines = [
        f"Quality against size: {study['model']}, all bytes counted, "
        f"{next(iter(texts.values()))['tokens']} tokens each of {' and '.join(texts)} "
        "([quality_qwen.json](benches/results/quality_qwen.json)):",
        *head("| | bits/weight | size | of 16 bits | " + " | ".join(texts) + " | top-1 |"),
    ]
    for point in study["points"]:
        figures = " | ".join(map(loss_and_kl, point["texts"].values()))
        name = "ours" if point["maker"] == "loops" else f"llama.cpp {point['name']}"
        lines.append(
            f"| {name} | {point['bits_per_weight']:.2f} | {point['size_bytes'] / 1e6:.0f} MB | "
            f"1/{point['compression_ratio']:.2f} | {figures} | "
            f"{100 * point['quality']['top1_agreement']:.1f} % |"
        )
    since = load("quality_qwen_shrunk")
    figures = ", ".join(f"{name} {loss_and_kl(found)}" for name, found in since["texts"].items())
    lines += [
        "",
        "Ours are from before [decision 20](docs/decisions/0020-shrunk-correlations.md); with it "
        f"{since['bits_per_weight']:.2f} bits: {figures} "
        "([quality_qwen_shrunk.json](benches/results/quality_qwen_shrunk.json)).",
    ]
    return "\n".join(lines)


def calibration_table() -> str:
    study = load("calibration_study")
    first = study["rows"][0]
    names = list(first["texts"])
    tokens = first["texts"][names[0]]["tokens"]
    lines = [
        "What calibration is worth: SmolLM2-135M-Instruct off its grid, linear layers in the bytes "
        f"of {study['planes']} planes, {study['calibration_tokens']} sampled tokens, "
        f"KL on {tokens} tokens each of {' and '.join(names)} "
        "([calibration_study.json](benches/results/calibration_study.json), "
        "[decision 12](docs/decisions/0012-guidance.md)):",
        "",
        "| calibration | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for row in study["rows"]:
        figures = " | ".join(
            f"{row['texts'][name]['kl_mean']:.4f} ± {row['texts'][name]['kl_stderr']:.4f}"
            for name in names
        )
        lines.append(f"| {row['name']} | {figures} |")
    return "\n".join(lines)


def memory_table() -> str:
    memory = load("memory_budget")
    first = memory["runs"][0]
    lines = [
        f"Memory: {memory['synthetic']} with random weights ({memory['bits_per_weight']:.2f} bits "
        f"a weight, {memory['size_bytes'] / 1e9:.2f} GB), {memory['kv_bits']}-bit KV cache, a "
        f"prompt of {first['prompt_tokens']} tokens, counted by {first['use']['method']} with "
        "page cache, "
        "from a cold start ([memory_budget.json](benches/results/memory_budget.json)):",
        "",
        "| limit | context | peak | predicted | with shared libraries | tokens/s | read a token "
        "| disk | of the floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in memory["runs"]:
        tokens, limit = run["tokens"], run["limit_bytes"]
        lines.append(
            f"| {'none' if limit is None else f'{limit / 1e6:.0f} MB'} | {run['context']} | "
            f"{run['use']['peak_bytes'] / 1e6:.1f} MB | {run['estimated_bytes'] / 1e6:.1f} MB | "
            f"{tokens['resident_bytes'] / 1e6:.1f} MB | "
            f"{tokens['generated_per_second']:.3f} over {run['generated_tokens']} | "
            f"{tokens['token_read_bytes'] / 1e9:.2f} GB | "
            f"{tokens['disk_bytes_per_second'] / 1e9:.2f} GB/s | {tokens['ratio_to_floor']:.2f} |"
        )
    lines += [
        "",
        "The floor is the disk's: the reader alone, in turns with the tokens of the run; without a "
        "limit, the kernels'.",
    ]
    return "\n".join(lines)


def memory_peers_table() -> str:
    found = load("memory_peers")
    lines = [
        f"Beside others: the same shape, a prompt of {found['prompt_tokens']} tokens, then "
        f"{found['tokens']} one by one, from a cold start "
        "([memory_peers.json](benches/results/memory_peers.json)):",
        *head("| limit | | on disk | peak with page cache | first token | tokens/s | |"),
    ]
    for row in found["rows"]:
        first, speed = row["first_token_seconds"], row["tokens_per_second"]
        lines.append(
            f"| {row['cap_bytes'] / 1e6:.0f} MB | {PEERS[row['kind']]} | "
            f"{row['disk_bytes'] / 1e9:.2f} GB | {row['peak_bytes'] / 1e6:.0f} MB | "
            f"{'-' if first is None else f'{first:.0f} s'} | "
            f"{'-' if speed is None else f'{speed:.2f}'} | {row['outcome']} |"
        )
    return "\n".join(lines)


def speed_table() -> str:
    peers = load("peers")
    lines = [
        f"Speed, weights in memory, {peers['threads']} threads ({peers['machine']['processor']}, "
        f"{peers['machine']['instruction_set']}), a prompt of {peers['prompt']} tokens, then "
        f"{peers['generate']} one by one, taking turns ([peers.json](benches/results/peers.json)):",
        *head("| | bits/weight | size | prompt tokens/s | generated tokens/s |"),
    ]
    for row in peers["rows"]:
        lines.append(
            f"| {row['name']} | {row['bits_per_weight']:.2f} | {row['bytes'] / 1e6:.0f} MB | "
            f"{row['prompt_per_second']:.0f} | {row['generated_per_second']:.1f} |"
        )
    lines += [
        "",
        "Beside each peer's file that is nearest in bits a weight:",
        *head("| | peer | prompt | generation |"),
    ]
    lines += [
        f"| {ratio['name']} | {ratio['peer']} | {ratio['prompt']:.2f}x | "
        f"{ratio['generated']:.2f}x |"
        for ratio in peers["ratios"]
    ]
    return "\n".join(lines)


def facts() -> str:
    parity, speed = load("parity_smollm2"), load("encode_speed")["by_threads"]
    distortion = load("table_distortion")["mean_squared_error_by_planes"]
    whole = load("compress_qwen")
    most = speed[max(speed, key=int)]
    return (
        f"Three planes leave {100 * distortion['L=7'][2]:.1f} % of a Gaussian's energy, three sign "
        f"planes {100 * distortion['sign planes'][2]:.1f} % "
        "([table_distortion.json](benches/results/table_distortion.json)). The engine agrees with "
        f"transformers on SmolLM2-135M to a mean KL of {parity['mean_kl']:.1e} "
        "([parity_smollm2.json](benches/results/parity_smollm2.json)). Encoding three planes with "
        f"feedback: {most['encoder_weights_per_second_per_core'] / 1e6:.1f} million weights a "
        f"second and core in the encoder, "
        f"{most['codec_weights_per_second_per_core'] / 1e6:.1f} with everything around it "
        "([encode_speed.json](benches/results/encode_speed.json)). All of "
        f"{whole['model']} to {whole['bits_per_weight']:.1f} bits, calibration and evaluation "
        f"included: {whole['seconds'] / 60:.0f} minutes on {whole['machine']['cores']} cores "
        f"within {whole['compress_ram_peak_bytes'] / 1e9:.2f} GB of memory "
        "([compress_qwen.json](benches/results/compress_qwen.json))."
    )


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    tables = (
        demo_table(),
        quality_table(),
        size_table(),
        calibration_table(),
        memory_table(),
        memory_peers_table(),
        speed_table(),
    )
    results = "\n\n".join([*tables, facts()])
    wanted = f"{before}{BEGIN}\n{results}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if wanted != text:
            print("README.md differs from benches/results: run scripts/update_readme.py")
        return int(wanted != text)
    path.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
