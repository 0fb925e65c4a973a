"""Constants of the benchmarks: classes, their numbers in the annotations, and which of them are stuff."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


VOC = _names(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)

# PASCAL Context (Mottaghi et al., 2014): the 59 classes, and their numbers among the 459 of the original label maps,
# which call number 397 "table".
CONTEXT = _names(
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, "
    "ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, "
    "keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, "
    "sidewalk, sign, sky, snow, sofa, diningtable, track, train, tree, truck, tvmonitor, wall, water, window, wood"
)
_CONTEXT_NUMBERS = (
    "2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 207 220 "
    "232 258 259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 440 445 454 458"
)
CONTEXT_NUMBERS = tuple(map(int, _CONTEXT_NUMBERS.split()))

# COCO numbers its categories from 1 and left gaps where categories were dropped.
COCO_OBJECTS = _names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
_DROPPED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_NUMBERS = tuple(number for number in range(1, 91) if number not in _DROPPED)

# The hierarchy of COCO-Stuff (Caesar et al., 2018): categories 1 to 182 by coarse class, first things, then stuff.
# Names are the words before "-things" and "-stuff"; food and furniture are both, so there the stuff keeps its ending.
_COARSE_THINGS = {
    "electronic": range(72, 78),
    "appliance": range(78, 84),
    "food": range(52, 62),
    "furniture": range(62, 72),
    "indoor": range(84, 92),
    "kitchen": range(44, 52),
    "accessory": range(26, 34),
    "animal": range(16, 26),
    "outdoor": range(10, 16),
    "person": (1,),
    "sports": range(34, 44),
    "vehicle": range(2, 10),
}
_COARSE_STUFF = {
    "ceiling": (102, 103),
    "floor": (101, *range(114, 119)),
    "food stuff": (121, 122, 153, 170),
    "furniture stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "rawmaterial": (100, 132, 139, 143),
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "wall": range(171, 178),
    "window": (180, 181),
    "building": (95, 96, 128, 151, 158, 166),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "sky": (106, 157),
    "solid": (127, 135, 150, 160, 162, 182),
    "structural": (99, 113, 138, 146, 164),
    "water": (120, 148, 155, 178, 179),
}
COARSE = _COARSE_THINGS | _COARSE_STUFF
COARSE_STUFF = tuple(_COARSE_STUFF)

ADE = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)
# The split of the scene parsing benchmark itself (objectSplit35-115.mat of CSAILVision/sceneparsing).
ADE_STUFF = _names(
    "wall, building, sky, floor, ceiling, road, grass, sidewalk, earth, mountain, water, house, sea, rug, field, "
    "sand, skyscraper, grandstand, path, runway, stairway, river, bridge, hill, hovel, tower, dirt track, land, "
    "escalator, stage, conveyer belt, swimming pool, waterfall, lake, pier"
)

# Cityscapes (Cordts et al., 2016): the 19 classes of the evaluation and their numbers among the 34 labels; stuff are
# its groups flat, construction, nature and sky.
CITYSCAPES = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
CITYSCAPES_NUMBERS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_STUFF = _names("road, sidewalk, building, wall, fence, vegetation, terrain, sky")
