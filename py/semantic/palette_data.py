"""Class names and colours of the public data sets, as text: `name rrggbb; name rrggbb; ...` in label order.

Sources: Cityscapes' own label table (train IDs, which BDD100K shares, and label IDs), color150.mat and objectInfo150 of the MIT scene
parsing benchmark (first synonym), labels.txt of COCO-Stuff (182 IDs; no colours are published), panoptic_coco_categories.json of the
COCO panoptic API, CelebAMask-HQ's label order with the colours of its mask tools, the colours that two face parsers and an anime face
parser paint, the Pascal VOC class list, the playground's classes.
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

# Label IDs (`*_gtFine_labelIds.png`), with the classes that are not evaluated; several of those are black.
CITYSCAPES_IDS = """
unlabeled 000000; ego vehicle 000000; rectification border 000000; out of roi 000000; static 000000; dynamic 6f4a00;
ground 510051; road 804080; sidewalk f423e8; parking faaaa0; rail track e6968c; building 464646; wall 66669c; fence be9999;
guard rail b4a5b4; bridge 966464; tunnel 96785a; pole 999999; polegroup 999999; traffic light faaa1e; traffic sign dcdc00;
vegetation 6b8e23; terrain 98fb98; sky 4682b4; person dc143c; rider ff0000; car 00008e; truck 000046; bus 003c64;
caravan 00005a; trailer 00006e; train 005064; motorcycle 0000e6; bicycle 770b20
"""

# 80 things, then 53 kinds of stuff: the class order of panoptic models.
COCO_PANOPTIC = """
person dc143c; bicycle 770b20; car 00008e; motorcycle 0000e6; airplane 6a00e4; bus 003c64; train 005064; truck 000046;
boat 0000c0; traffic light faaa1e; fire hydrant 64aa1e; stop sign dcdc00; parking meter af74af; bench fa001e; bird a52a2a;
cat ff4dff; dog 00e2fc; horse b6b6ff; sheep 005200; cow 78a69d; elephant 6e4c00; bear ae39ff; zebra c76400; giraffe 480076;
backpack ffb3f0; umbrella 007d5c; handbag d10097; tie bcd0b6; suitcase 00dcb0; frisbee ff63a4; skis 5c0049; snowboard 8581ff;
sports ball 4eb4ff; kite 00e400; baseball bat aefff3; baseball glove 2d59ff; skateboard 868667; surfboard 9194ae;
tennis racket ffd0ba; bottle c5e2ff; wine glass ab8601; cup 6d3f36; fork cf8aff; knife 97005f; spoon 09503d; bowl 546933;
banana 4a4169; apple a6c466; sandwich d0c3d2; orange ff6d41; broccoli 008f95; carrot b300c2; hot dog d1636a; pizza 057900;
donut e3ffcd; cake 93bad0; chair 994501; couch 035fa1; potted plant a3ff00; bed 7700aa; dining table 00b6c7; toilet 00a578;
tv b78258; laptop 5f2000; mouse 827287; remote 6e8185; keyboard a64a76; cell phone db8eb9; microwave 4fd272; oven b25a3e;
toaster 41460f; sink 7fa773; refrigerator 3b696a; book 8e6c2d; clock c4ac00; vase 5f3650; scissors 804cff; teddy bear c93901;
hair drier f6007a; toothbrush bfa2d0; banner ffff80; blanket 93d3cb; bridge 966464; cardboard a8abac; counter 9270c6;
curtain d2aa64; door-stuff 5c8859; floor-wood da58b8; flower f18100; fruit d911ff; gravel 7c4ab5; house 464646; light ffe4ff;
mirror-stuff 9ad000; net c1005c; pillow 4c5b71; platform ffb4c3; playingfield 6a9ab0; railroad e6968c; river 3c8fff;
road 804080; roof 5c5237; sand fed47c; sea 494dae; shelf ffa062; snow ffffff; stairs 68546d; tent a9a483; towel e1c7ff;
wall-brick 89364a; wall-stone 879edf; wall-tile 07f6e7; wall-wood 6bffc8; water-other 3a2995; window-blind b7798e;
window-other ff4961; tree-merged 6b8e23; fence-merged be9999; ceiling-merged 928b8d; sky-other-merged 4682b4;
cabinet-merged 86c79c; table-merged d1e28c; floor-other-merged 60246c; pavement-merged 606060; mountain-merged 40aa40;
grass-merged 98fb98; dirt-merged d0e5e4; paper-merged cebaab; food-other-merged 98a140; building-other-merged 747000;
rock-merged 00728f; wall-other-merged 66669c; rug-merged fa8dff
"""

# viridis(i / 18) of the CelebAMask-HQ label order, as a face parsing node pack for ComfyUI paints it.
FACE_VIRIDIS = """
background 440154; skin 471567; nose 472777; eye_g 443982; l_eye 3e4989; r_eye 37598c; l_brow 30678d; r_brow 2a758e;
l_ear 25828e; r_ear 20908c; mouth 1e9d88; u_lip 24aa82; l_lip 35b778; hair 4dc26b; hat 6dce58; ear_r 90d643; neck_l b5dd2b;
neck dae218; cloth fde724
"""

# The class order of BiSeNet face parsing with the part colours of its published script, before they are blended over the photo.
BISENET_FACES = """
background ffffff; skin ff5500; l_brow ffaa00; r_brow ff0055; l_eye ff00aa; r_eye 00ff00; eye_g 55ff00; l_ear aaff00;
r_ear 00ff55; ear_r 00ffaa; nose 0000ff; mouth 5500ff; u_lip aa00ff; l_lip 0055ff; neck 00aaff; neck_l ffff00; cloth ffff55;
hair ffffaa; hat ff00ff
"""

ANIME_FACES = """
background ffff00; hair 0000ff; eye ff0000; mouth ffffff; face 00ff00; skin 00ffff; clothes ff00ff
"""

# The colours follow the VOC rule from black on.
PASCAL_VOC = """
background; aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; diningtable; dog; horse; motorbike; person;
pottedplant; sheep; sofa; train; tvmonitor
"""

#: COCO-Stuff's classes without pixels, which the 171 train IDs leave out.
COCO_STUFF_UNUSED = (
    "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush"
)  # fmt: skip

#: Names of the same class in different palettes; used to match palettes by name.
SYNONYMS = """
road, street
sidewalk, pavement, pavement merged
vegetation, tree, tree merged
sky, sky other, sky other merged
building, building other, building other merged
wall, wall other, wall other merged
floor, floor other, floor other merged
grass, grass other, grass merged
water, water other
fence, fence merged
ceiling, ceiling other, ceiling merged
cabinet, cabinet merged
mountain, mountain merged
paper, paper merged
motorcycle, motorbike, minibike
rock, stone, rock merged
sofa, couch
rug, carpet, rug merged
television, tv, tvmonitor
airplane, plane, aeroplane
traffic sign, street sign, signboard
plant, potted plant, plant other, pottedplant
table, dining table, table merged, diningtable
bicycle, bike
stairs, stairway
earth, dirt, ground other, dirt merged
apparel, clothes, cloth
mirror, mirror stuff
door, door stuff
desk, desk stuff
windowpane, window, window other
food, food other, food other merged
eye g, eye glasses, eyeglasses
l eye, left eye
r eye, right eye
l brow, left brow, left eyebrow
r brow, right brow, right eyebrow
l ear, left ear
r ear, right ear
ear r, earring
neck l, necklace
u lip, upper lip
l lip, lower lip
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
