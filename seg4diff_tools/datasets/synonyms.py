"""Everyday words for names of classes."""

from collections.abc import Mapping

_TABLE = """
aeroplane: airplane, plane, aircraft
airplane: airplane, plane, aircraft
apparel: clothes, clothing
arcade machine: arcade machine, arcade game
ashcan: trash can, garbage can, bin
bannister: handrail, railing
bedclothes: bedding, blanket, sheets
bicycle: bicycle, bike
bird: bird, duck, gull
blind: blinds, window blind
boat: boat, ship
bookcase: bookcase, bookshelf
buffet: sideboard, buffet
bulletin board: bulletin board, notice board
bus: bus, coach
cabinet: cabinet, cupboard
car: car, automobile
case: display case, showcase
cat: cat, kitten
cell phone: cell phone, phone, smartphone
chest of drawers: chest of drawers, dresser
cloth: cloth, fabric
column: column, pillar
conveyer belt: conveyor belt
couch: couch, sofa
cow: cow, cattle, calf
crt screen: computer screen, monitor
cup: cup, mug
curtain: curtain, drapes
diningtable: dining table, table
dining table: dining table, table
dog: dog, puppy
donut: donut, doughnut
earth: soil, ground, dirt
electronic: electronics, electronic device
field: field, meadow
food stuff: food, fruit, vegetables
furniture stuff: furniture, cabinet, shelf
fire hydrant: fire hydrant, hydrant
grandstand: grandstand, stands, bleachers
hair drier: hair dryer
handbag: handbag, purse
hood: range hood, extractor hood
horse: horse, pony
hot dog: hot dog, hotdog
hovel: hut, shack
kitchen: kitchenware, dishes
land: land, ground
laptop: laptop, notebook computer
light: light, lamp
minibike: motorcycle, moped
motorbike: motorcycle, motorbike
motorcycle: motorcycle, motorbike
mountain: mountain, hill
mouse: mouse, computer mouse
ottoman: ottoman, footstool
outdoor: street furniture, traffic light, bench
painting: painting, picture
palm: palm tree
person: person, man, woman, people, child
pier: pier, dock
plaything: toy
pot: flower pot, pot
potted plant: potted plant, houseplant, plant
pottedplant: potted plant, plant
rawmaterial: raw material, paper, metal, plastic
refrigerator: refrigerator, fridge
remote: remote control, remote
rider: rider, cyclist, motorcyclist
road: road, street
rug: rug, carpet
sconce: wall lamp
sheep: sheep, lamb
shelves: shelves, shelf
sidewalk: sidewalk, pavement
sign: sign, signboard
signboard: sign, signboard
sofa: sofa, couch
solid: rock, stone, hill
sports: sports equipment
sports ball: ball, sports ball
stairway: staircase, stairs
stove: stove, cooker
streetlight: street light, street lamp
structural: fence, railing, net
swivel chair: office chair, swivel chair
teddy bear: teddy bear, stuffed animal, toy
television receiver: television, tv
terrain: grass, ground
textile: fabric, cloth
track: railway track, rails
trade name: brand name, logo
traffic sign: traffic sign, road sign
truck: truck, lorry
tv: tv, television
tvmonitor: tv, monitor, television
vegetation: trees, plants, bushes
washer: washing machine
windowpane: window
"""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    name: tuple(words.split(", ")) for name, words in (line.split(": ") for line in _TABLE.split("\n") if line)
}
"""Everyday words for a class, the most common first, where they differ from its name in `published`."""
