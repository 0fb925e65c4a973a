"""Fine-tune a LoRA on masks (MAGNET), and score it on unseen images: python examples/finetune_lora.py --steps 600

A few steps only show that it runs; 600 take about half an hour with the embedded model on two cores.
"""

import argparse
from dataclasses import replace

from seg4diff_tools import OpenVocabulary, apply_lora, evaluate, finetune, load_backbone, magnet, scenes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="mini")
parser.add_argument("--preset", default="mini", choices=sorted(magnet.PRESETS))
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--out", default="lora")
options = parser.parse_args()

backbone = load_backbone(options.model)
config = replace(magnet.preset(options.preset), steps=options.steps, batch=options.batch, warmup=0)
lora = finetune(backbone, scenes.Scenes("train", 100_000), config, options.out, progress=False)

unseen, methods = scenes.Scenes("test", 8), {"one layer": OpenVocabulary()}
before = evaluate(backbone, unseen, methods, progress=False).table()
with apply_lora(backbone, lora):
    after = evaluate(backbone, unseen, methods, progress=False).table()
for name, table in (("before", before), ("after", after)):
    print(f"{name}: mIoU {table.mIoU[0]:.1%} ({table.low[0]:.1%} to {table.high[0]:.1%})")
print(lora)
