"""Draw the sprite atlases of `seg4diff_tools/scenes/sprites` from three openly licensed icon sets.

The drawings come from these packages of the npm registry (authors and licences: NOTICE):

    npm install @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6
    pip install resvg-py==0.5.0 pillow==13.0.0 numpy
    python scripts/make_sprites.py --icons node_modules/@iconify-json --out seg4diff_tools/scenes/sprites

Each drawing is cropped to its outline, scaled so that its longer side fills a 96 px cell, and centered there. Cells
stand in the order of the table below, 16 to a row. With these
versions the script gives the same files every time.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

CELL, COLUMNS, RENDER = 96, 16, 512
HELD_OUT = "noto-v1"
PACKAGES = {"noto": "noto", "noto-v1": "noto-v1", "fluent-flat": "fluent-emoji-flat"}
NOTO, FLUENT = "https://github.com/googlefonts/noto-emoji", "https://github.com/microsoft/fluentui-emoji"
STYLES = {  # title, licence, author, source
    "noto": ("Noto Emoji", "Apache-2.0", "Google", NOTO),
    "noto-v1": ("Noto Emoji, first version", "Apache-2.0", "Google", NOTO),
    "fluent-flat": ("Fluent Emoji Flat", "MIT", "Microsoft Corporation", FLUENT),
}

# name, plural, category, icon (the same in all three packages).
# A star after the category: the object has one dominant saturated color and stays itself in another.
# The first 32 are the base vocabulary: clearly different in color and shape.
CONCEPTS = """
cat, cats, animal, cat-face
dog, dogs, animal, dog-face
car, cars, vehicle*, automobile
tree, trees, plant, deciduous-tree
apple, apples, food*, red-apple
banana, bananas, food, banana
fish, fish, animal*, fish
bus, buses, vehicle, bus
house, houses, building, house
balloon, balloons, party*, balloon
sunflower, sunflowers, plant, sunflower
pizza, pizzas, food, pizza
guitar, guitars, instrument*, guitar
umbrella, umbrellas, household*, umbrella
elephant, elephants, animal, elephant
pig, pigs, animal, pig-face
frog, frogs, animal, frog
penguin, penguins, animal, penguin
panda, pandas, animal, panda
turtle, turtles, animal, turtle
mushroom, mushrooms, plant*, mushroom
cactus, cacti, plant, cactus
strawberry, strawberries, food, strawberry
pineapple, pineapples, food, pineapple
grapes, grapes, food*, grapes
donut, donuts, food, doughnut
rocket, rockets, vehicle, rocket
airplane, airplanes, vehicle, airplane
hamburger, hamburgers, food, hamburger
book, books, household*, closed-book
clock, clocks, household, alarm-clock
pumpkin, pumpkins, plant*, jack-o-lantern
rabbit, rabbits, animal, rabbit-face
bear, bears, animal, bear
shark, sharks, animal, shark
lion, lions, animal, lion
tiger, tigers, animal, tiger-face
fox, foxes, animal, fox
mouse, mice, animal, mouse
squirrel, squirrels, animal, chipmunk
cow, cows, animal, cow
horse, horses, animal, horse
sheep, sheep, animal, ewe
monkey, monkeys, animal, monkey
rooster, roosters, animal, rooster
chick, chicks, animal, baby-chick
duck, ducks, animal, duck
owl, owls, animal, owl
crocodile, crocodiles, animal, crocodile
snake, snakes, animal*, snake
snail, snails, animal, snail
butterfly, butterflies, animal*, butterfly
bee, bees, animal, honeybee
ladybug, ladybugs, animal, lady-beetle
spider, spiders, animal, spider
octopus, octopuses, animal*, octopus
crab, crabs, animal*, crab
whale, whales, animal, whale
ghost, ghosts, figure, ghost
robot, robots, figure, robot
snowman, snowmen, figure, snowman-without-snow
watermelon, watermelons, food, watermelon
lemon, lemons, food, lemon
carrot, carrots, food, carrot
eggplant, eggplants, food*, eggplant
tomato, tomatoes, food*, tomato
pear, pears, food*, pear
cherry, cherries, food*, cherries
avocado, avocados, food, avocado
corn, corn, food, ear-of-corn
bread, bread, food, bread
cheese, cheeses, food, cheese-wedge
taco, tacos, food, taco
cookie, cookies, food, cookie
cake, cakes, food, birthday-cake
ice cream, ice creams, food, soft-ice-cream
lollipop, lollipops, food, lollipop
coffee, coffees, food, hot-beverage
tulip, tulips, plant*, tulip
rose, roses, plant*, rose
palm, palms, plant, palm-tree
leaf, leaves, plant*, maple-leaf
sailboat, sailboats, vehicle, sailboat
truck, trucks, vehicle, delivery-truck
fire engine, fire engines, vehicle, fire-engine
ambulance, ambulances, vehicle, ambulance
taxi, taxis, vehicle, taxi
tractor, tractors, vehicle, tractor
motorcycle, motorcycles, vehicle, motorcycle
bicycle, bicycles, vehicle, bicycle
helicopter, helicopters, vehicle, helicopter
castle, castles, building, castle
drum, drums, instrument, drum
trumpet, trumpets, instrument, trumpet
saxophone, saxophones, instrument, saxophone
shirt, shirts, clothes, t-shirt
dress, dresses, clothes*, dress
jeans, jeans, clothes, jeans
hat, hats, clothes*, womans-hat
boot, boots, clothes*, womans-boot
shoe, shoes, clothes*, mans-shoe
backpack, backpacks, clothes*, backpack
crown, crowns, jewellery, crown
diamond, diamonds, jewellery, gem-stone
key, keys, household, key
hammer, hammers, household, hammer
scissors, scissors, household, scissors
pencil, pencils, household*, pencil
lightbulb, lightbulbs, household, light-bulb
candle, candles, household, candle
telephone, telephones, household*, telephone
television, televisions, household, television
camera, cameras, household, camera
bed, beds, household, bed
couch, couches, household*, couch-and-lamp
door, doors, household*, door
gift, gifts, party*, wrapped-gift
box, boxes, household, package
bell, bells, household, bell
trophy, trophies, sport, trophy
soccer ball, soccer balls, sport, soccer-ball
baseball, baseballs, sport, baseball
football, footballs, sport, american-football
globe, globes, household, globe-showing-europe-africa
fire, fires, nature, fire
moon, moons, nature, crescent-moon
star, stars, nature*, star
cloud, clouds, nature, cloud
"""


def icon_svg(collection: dict, name: str) -> str | None:
    """The SVG text of icon `name` (aliases followed) of an Iconify collection, or None where it has no such icon."""
    while name not in collection["icons"]:
        if name not in collection.get("aliases", {}):
            return None
        name = collection["aliases"][name]["parent"]
    frame = {"left": 0, "top": 0, "width": collection["width"], "height": collection["height"]}
    icon = frame | collection["icons"][name]
    box = "{left} {top} {width} {height}".format(**icon)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
        f' width="{icon["width"]}" height="{icon["height"]}">{icon["body"]}</svg>'
    )


def sprite(svg: str) -> Image.Image:
    """Rasterise `svg`, crop it to its outline and fit it into one RGBA cell (alpha not premultiplied)."""
    drawing = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDER)))).convert("RGBA")
    # Faint glows and shadows do not count as outline.
    drawing = drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox())
    scale = CELL / max(drawing.size)
    drawing = drawing.resize([max(1, round(scale * side)) for side in drawing.size], Image.Resampling.LANCZOS)
    pixels = np.zeros((CELL, CELL, 4), np.uint8)
    top, left = (CELL - drawing.height) // 2, (CELL - drawing.width) // 2
    pixels[top : top + drawing.height, left : left + drawing.width] = drawing
    pixels[pixels[..., 3] < 4] = 0
    # Where nothing is drawn, carry the mean color, so that scaling a sprite without premultiplying leaves no dark rim.
    color, alpha = pixels[..., :3], pixels[..., 3]
    color[alpha == 0] = np.average(color.reshape(-1, 3), axis=0, weights=alpha.ravel())
    return Image.fromarray(pixels)


def main(icons: Path, out: Path) -> None:
    table = [[field.strip() for field in line.split(",")] for line in CONCEPTS.strip().splitlines()]
    concepts = [
        {"name": name, "plural": plural, "category": kind.rstrip("*"), "recolor": kind.endswith("*"), "drawings": []}
        for name, plural, kind, _ in table
    ]
    size = COLUMNS * CELL, -(-len(table) // COLUMNS) * CELL
    styles = {}
    out.mkdir(parents=True, exist_ok=True)
    for style, package in PACKAGES.items():
        collection = json.loads((icons / package / "icons.json").read_text(encoding="utf-8"))
        version = json.loads((icons / package / "package.json").read_text(encoding="utf-8"))["version"]
        atlas = Image.new("RGBA", size)
        for index, (concept, row) in enumerate(zip(concepts, table, strict=True)):
            svg = icon_svg(collection, row[3])
            if svg is None:
                raise SystemExit(f"{package} has no icon {row[3]!r} for {concept['name']}: correct the table")
            concept["drawings"].append(style)
            atlas.paste(sprite(svg), (index % COLUMNS * CELL, index // COLUMNS * CELL))
        atlas.save(out / f"{style}.png", optimize=True)
        title, licence, author, source = STYLES[style]
        styles[style] = {
            "title": title,
            "license": licence,
            "author": author,
            "source": source,
            "package": f"@iconify-json/{package}@{version}",
            "held_out": style == HELD_OUT,
        }
    heading = json.dumps({"cell": CELL, "columns": COLUMNS, "styles": styles}, indent=1)
    lines = ",\n".join("  " + json.dumps(concept) for concept in concepts)
    text = heading.removesuffix("\n}") + f',\n "concepts": [\n{lines}\n ]\n}}\n'
    (out / "sprites.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the sprite atlases from the icon packages.")
    parser.add_argument("--icons", type=Path, required=True, help="the folder node_modules/@iconify-json")
    parser.add_argument("--out", type=Path, default=Path("seg4diff_tools/scenes/sprites"), help="where the atlases go")
    arguments = parser.parse_args()
    main(arguments.icons, arguments.out)
