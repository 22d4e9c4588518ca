"""What is known of the data sets without their files: names of classes, mean and deviation."""

from snnfast.data.transforms import Normalise

OBJECTS = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CLASSES = {
    "digits": tuple("0123456789"),
    "cifar10": OBJECTS,
    "cifar100": tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm""".split()
    ),
    "cifar10_dvs": OBJECTS,
    "dvs_gesture": tuple(
        """hand_clapping right_hand_wave left_hand_wave right_arm_clockwise
        right_arm_counter_clockwise left_arm_clockwise left_arm_counter_clockwise arm_roll air_drums
        air_guitar other_gestures""".split()
    ),
}
"""By label; those of ``folder`` and ``imagenet`` are the names of their folders."""

_IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISE = {
    "digits": Normalise((0.1307,), (0.3081,)),  # of MNIST's training images
    "cifar10": Normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Normalise((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "folder": _IMAGENET,
    "imagenet": _IMAGENET,
}
