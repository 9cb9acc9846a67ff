"""Class names and colours of the public data sets, as text: `name rrggbb; name rrggbb; ...` in label order.

Sources: Cityscapes' own label table (train ids; BDD100K uses the same), color150.mat and objectInfo150 of the MIT scene parsing
benchmark (first synonym), labels.txt of COCO-Stuff (its 182 ids; no colours are published), CelebAMask-HQ's label order with the
colours that its mask tools draw.
"""

from __future__ import annotations

CITYSCAPES = """
road 804080; sidewalk f423e8; building 464646; wall 66669c; fence be9999; pole 999999; traffic light faaa1e; traffic sign dcdc00;
vegetation 6b8e23; terrain 98fb98; sky 4682b4; person dc143c; rider ff0000; car 00008e; truck 000046; bus 003c64; train 005064;
motorcycle 0000e6; bicycle 770b20
"""

# Two classes share a colour in the official file: road and skyscraper, 8c8c8c. Read from a picture, it is road.
ADE20K = """
wall 787878; building b47878; sky 06e6e6; floor 503232; tree 04c803; ceiling 787850; road 8c8c8c; bed cc05ff;
windowpane e6e6e6; grass 04fa07; cabinet e005ff; sidewalk ebff07; person 96053d; earth 787846; door 08ff33; table ff0652;
mountain 8fff8c; plant ccff04; curtain ff3307; chair cc4603; car 0066c8; water 3de6fa; painting ff0633; sofa 0b66ff;
shelf ff0747; house ff09e0; sea 0907e6; mirror dcdcdc; rug ff095c; field 7009ff; armchair 08ffd6; seat 07ffe0; fence ffb806;
desk 0aff47; rock ff290a; wardrobe 07ffff; lamp e0ff08; bathtub 6608ff; railing ff3d06; cushion ffc207; base ff7a08;
box 00ff14; column ff0829; signboard ff0599; chest of drawers 0633ff; counter eb0cff; sand a09614; sink 00a3ff;
skyscraper 8c8c8c; fireplace fa0a0f; refrigerator 14ff00; grandstand 1fff00; path ff1f00; stairs ffe000; runway 99ff00;
case 0000ff; pool table ff4700; pillow 00ebff; screen door 00adff; stairway 1f00ff; river 0bc8c8; bridge ff5200;
bookcase 00fff5; blind 003dff; coffee table 00ff70; toilet 00ff85; flower ff0000; book ffa300; hill ff6600; bench c2ff00;
countertop 008fff; stove 33ff00; palm 0052ff; kitchen island 00ff29; computer 00ffad; swivel chair 0a00ff; boat adff00;
bar 00ff99; arcade machine ff5c00; hovel ff00ff; bus ff00f5; towel ff0066; light ffad00; truck ff0014; tower ffb8b8;
chandelier 001fff; awning 00ff3d; streetlight 0047ff; booth ff00cc; television 00ffc2; airplane 00ff52; dirt track 000aff;
apparel 0070ff; pole 3300ff; land 00c2ff; bannister 007aff; escalator 00ffa3; ottoman ff9900; bottle 00ff0a; buffet ff7000;
poster 8fff00; stage 5200ff; van a3ff00; ship ffeb00; fountain 08b8aa; conveyer belt 8500ff; canopy 00ff5c; washer b800ff;
plaything ff001f; swimming pool 00b8ff; stool 00d6ff; barrel ff0070; basket 5cff00; waterfall 00e0ff; tent 70e0ff;
bag 46b8a0; minibike a300ff; cradle 9900ff; oven 47ff00; ball ff00a3; food ffcc00; step ff008f; tank 00ffeb;
trade name 85ff00; microwave ff00eb; pot f500ff; animal ff007a; bicycle fff500; lake 0abed4; dishwasher d6ff00;
screen 00ccff; blanket 1400ff; sculpture ffff00; hood 0099ff; sconce 0029ff; vase 00ffcc; traffic light 2900ff; tray 29ff00;
ashcan ad00ff; fan 00f5ff; pier 4700ff; crt screen 7a00ff; plate 00ffb8; monitor 005cff; bulletin board b8ff00;
shower 0085ff; radiator ffd600; glass 19c2c2; clock 66ff00; flag 5c00ff
"""

CELEBAMASK_HQ = """
background 000000; skin cc0000; nose 4c9900; eye_g cccc00; l_eye 3333ff; r_eye cc00cc; l_brow 00ffff; r_brow 33ffff; l_ear 663300;
r_ear ff0000; mouth 66cc00; u_lip ffff00; l_lip 000099; hair 0000cc; hat ff3399; ear_r 00cccc; neck_l 003300; neck ff9933;
cloth 00cc00
"""

# Names only. The eleven that no picture of the data set holds (street sign, hat, ...) keep their places, so label = COCO id - 1.
COCO_STUFF = """
person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant; street sign; stop sign;
parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant; bear; zebra; giraffe; hat; backpack; umbrella; shoe;
eye glasses; handbag; tie; suitcase; frisbee; skis; snowboard; sports ball; kite; baseball bat; baseball glove; skateboard;
surfboard; tennis racket; bottle; plate; wine glass; cup; fork; knife; spoon; bowl; banana; apple; sandwich; orange;
broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed; mirror; dining table; window; desk; toilet;
door; tv; laptop; mouse; remote; keyboard; cell phone; microwave; oven; toaster; sink; refrigerator; blender; book; clock;
vase; scissors; teddy bear; hair drier; toothbrush; hair brush; banner; blanket; branch; bridge; building-other; bush;
cabinet; cage; cardboard; carpet; ceiling-other; ceiling-tile; cloth; clothes; clouds; counter; cupboard; curtain;
desk-stuff; dirt; door-stuff; fence; floor-marble; floor-other; floor-stone; floor-tile; floor-wood; flower; fog;
food-other; fruit; furniture-other; grass; gravel; ground-other; hill; house; leaves; light; mat; metal; mirror-stuff; moss;
mountain; mud; napkin; net; paper; pavement; pillow; plant-other; plastic; platform; playingfield; railing; railroad; river;
road; rock; roof; rug; salad; sand; sea; shelf; sky-other; skyscraper; snow; solid-other; stairs; stone; straw;
structural-other; table; tent; textile-other; towel; tree; vegetable; wall-brick; wall-concrete; wall-other; wall-panel;
wall-stone; wall-tile; wall-wood; water-other; waterdrops; window-blind; window-other; wood
"""

#: Names that mean the same thing in different palettes; used to match palettes by name.
SAME_THING = """
road, street
sidewalk, pavement
vegetation, tree
sky, sky other
building, building other
wall, wall other
floor, floor other
grass, grass other
water, water other
motorcycle, motorbike, minibike
rock, stone
sofa, couch
rug, carpet
television, tv
airplane, plane, aeroplane
traffic sign, street sign, signboard
plant, potted plant, plant other
table, dining table
bicycle, bike
stairs, stairway
earth, dirt, ground other
apparel, clothes, cloth
mirror, mirror stuff
door, door stuff
desk, desk stuff
windowpane, window, window other
food, food other
"""

#: The playground's classes, name -> colour. Orders are frozen: weights are trained on them, so append, never insert.
PLAYGROUND: dict[str, tuple[int, int, int]] = {
    "backdrop": (128, 128, 128),
    "sky": (70, 130, 180),
    "grass": (107, 142, 35),
    "road": (128, 64, 128),
    "house": (70, 70, 70),
    "roof": (165, 42, 42),
    "window": (255, 236, 139),
    "tree": (0, 100, 0),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
    "ball": (255, 85, 0),
    "box": (0, 170, 255),
    "star": (255, 255, 0),
    "heart": (255, 0, 127),
    "fish": (0, 255, 170),
    "cup": (170, 0, 255),
    "moon": (170, 255, 0),
    "ring": (255, 170, 255),
    "skin": (255, 200, 150),
    "hair": (102, 51, 0),
    "brow": (60, 0, 60),
    "eye": (0, 255, 255),
    "nose": (200, 100, 50),
    "mouth": (204, 0, 0),
    "clothes": (0, 0, 255),
    "glasses": (0, 60, 60),
    "sand": (240, 220, 110),
    "sea": (0, 0, 204),
    "snow": (230, 230, 255),
    "wall": (190, 153, 153),
    "floor": (152, 100, 64),
}
