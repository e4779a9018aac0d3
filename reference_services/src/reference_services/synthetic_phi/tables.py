"""The generator's tables, frozen: changing any entry needs a new `GENERATOR_VERSION`.

Written for this generator. Weights are coarse shapes of public US statistics (age and sex, names), enough for
plausible test data and for nothing else. Codes and displays: ICD-10-CM (US public domain), LOINC (free with
its notice: this material contains content from LOINC, http://loinc.org, copyright Regenstrief Institute).
"""

from __future__ import annotations

from typing import Final, NamedTuple

GENERATOR_VERSION: Final = "3"


class Condition(NamedTuple):
    """A diagnosis, whom it can befall, and how often.

    Args:
        code: ICD-10-CM code.
        display: Its official long description.
        sexes: Administrative sexes it occurs in, ``F``, ``M`` or both.
        youngest: Lowest age in years.
        oldest: Highest age in years.
        weight: Relative frequency among those.
        group: Two diagnoses of one group exclude each other.
    """

    code: str
    display: str
    sexes: str
    youngest: int
    oldest: int
    weight: int
    group: str = ""


#: Five-year age bands from 0; weight of men and of women in each.
BAND_YEARS: Final = 5
PYRAMID: Final = (
    (29, 28), (31, 29), (33, 32), (34, 33), (35, 33), (35, 34), (36, 35), (34, 34), (33, 33), (31, 31),
    (32, 32), (31, 33), (32, 34), (27, 30), (21, 24), (14, 17), (9, 12), (5, 8), (2, 4), (1, 2),
)  # fmt: skip

FEMALE_NAMES: Final = (
    ("Olivia", 24), ("Emma", 23), ("Ava", 18), ("Sophia", 18), ("Isabella", 17), ("Mia", 15), ("Amelia", 13),
    ("Mary", 40), ("Patricia", 25), ("Jennifer", 30), ("Linda", 25), ("Elizabeth", 27), ("Barbara", 22),
    ("Susan", 20), ("Jessica", 24), ("Sarah", 22), ("Karen", 17), ("Nancy", 15), ("Lisa", 18), ("Betty", 12),
    ("Margaret", 14), ("Sandra", 14), ("Ashley", 19), ("Kimberly", 17), ("Emily", 20), ("Donna", 12),
    ("Michelle", 16), ("Carol", 11), ("Amanda", 17), ("Melissa", 15), ("Deborah", 12), ("Stephanie", 15),
    ("Rebecca", 14), ("Laura", 13), ("Helen", 9), ("Grace", 10), ("Maria", 14), ("Anna", 11), ("Ruth", 7),
    ("Nicole", 12), ("Samantha", 12), ("Hannah", 10), ("Alexis", 8), ("Gabriela", 5), ("Aaliyah", 4),
    ("Mei", 3), ("Priya", 3), ("Fatima", 3), ("Lucia", 4), ("Naomi", 4),
)  # fmt: skip

MALE_NAMES: Final = (
    ("Liam", 25), ("Noah", 24), ("Oliver", 15), ("Elijah", 14), ("Lucas", 13), ("Mason", 12), ("Ethan", 14),
    ("James", 42), ("Robert", 38), ("John", 38), ("Michael", 40), ("David", 34), ("William", 36),
    ("Richard", 24), ("Joseph", 25), ("Thomas", 23), ("Christopher", 27), ("Charles", 21), ("Daniel", 26),
    ("Matthew", 25), ("Anthony", 19), ("Mark", 17), ("Donald", 14), ("Steven", 15), ("Andrew", 18),
    ("Paul", 14), ("Joshua", 19), ("Kenneth", 12), ("Kevin", 14), ("Brian", 14), ("George", 12),
    ("Timothy", 12), ("Ronald", 11), ("Edward", 12), ("Jason", 14), ("Jeffrey", 12), ("Ryan", 14),
    ("Jacob", 15), ("Nicholas", 13), ("Jose", 12), ("Luis", 8), ("Carlos", 8), ("Samuel", 11), ("Isaac", 7),
    ("Malik", 4), ("Wei", 3), ("Arjun", 3), ("Omar", 3), ("Diego", 4), ("Caleb", 7),
)  # fmt: skip

SURNAMES: Final = (
    ("Smith", 83), ("Johnson", 66), ("Williams", 55), ("Brown", 49), ("Jones", 48), ("Garcia", 39),
    ("Miller", 39), ("Davis", 38), ("Rodriguez", 37), ("Martinez", 36), ("Hernandez", 35), ("Lopez", 30),
    ("Gonzalez", 28), ("Wilson", 27), ("Anderson", 27), ("Thomas", 26), ("Taylor", 26), ("Moore", 25),
    ("Jackson", 24), ("Martin", 24), ("Lee", 24), ("Perez", 23), ("Thompson", 23), ("White", 23),
    ("Harris", 21), ("Sanchez", 21), ("Clark", 19), ("Ramirez", 19), ("Lewis", 18), ("Robinson", 18),
    ("Walker", 18), ("Young", 17), ("Allen", 17), ("King", 17), ("Wright", 16), ("Scott", 15), ("Torres", 15),
    ("Nguyen", 15), ("Hill", 15), ("Flores", 15), ("Green", 15), ("Adams", 15), ("Nelson", 14), ("Baker", 14),
    ("Hall", 14), ("Rivera", 13), ("Campbell", 13), ("Mitchell", 13), ("Carter", 13), ("Roberts", 13),
    ("Kim", 9), ("Patel", 8), ("Chen", 8), ("Murphy", 11), ("Bailey", 10), ("Cooper", 10), ("Reyes", 9),
    ("Cox", 9), ("Ward", 9), ("Okafor", 2), ("Singh", 4), ("Cohen", 4), ("Yamamoto", 1), ("Kowalski", 2),
)  # fmt: skip

STREETS: Final = (
    "Maple Street", "Oak Avenue", "Cedar Lane", "Pine Street", "Elm Street", "Washington Avenue",
    "Lake Drive", "Hillcrest Road", "Park Place", "River Road", "Sunset Boulevard", "Church Street",
    "Highland Avenue", "Mill Road", "Meadow Lane", "Franklin Court",
)  # fmt: skip

#: Invented towns.
CITIES: Final = (
    "Sampleton", "Testford", "Mockville", "Fixture Falls", "Placeholder", "Demoborough", "Exampleburg",
    "Trialton", "Synthia", "Nulltown", "Dummy Springs", "Stubfield", "Port Specimen", "Fabricate",
    "New Pretend", "Imagine City",
)  # fmt: skip

STATES: Final = (
    ("CA", 39), ("TX", 30), ("FL", 22), ("NY", 20), ("PA", 13), ("IL", 13), ("OH", 12), ("GA", 11), ("NC", 11),
    ("MI", 10), ("NJ", 9), ("VA", 9), ("WA", 8), ("AZ", 7), ("MA", 7), ("TN", 7), ("IN", 7), ("MO", 6),
    ("MD", 6), ("WI", 6), ("CO", 6), ("MN", 6), ("SC", 5), ("AL", 5), ("LA", 5), ("KY", 5), ("OR", 4),
    ("OK", 4), ("UT", 3), ("NV", 3), ("IA", 3), ("NM", 2),
)  # fmt: skip

#: Area codes; with 555-01xx behind them the number is reserved for fiction in every one.
AREA_CODES: Final = (
    "202", "206", "212", "213", "215", "303", "305", "312", "313", "404", "407", "415", "503", "505", "512",
    "602", "612", "615", "617", "619", "702", "703", "704", "713", "718", "801", "808", "816", "904", "916",
    "919", "972",
)  # fmt: skip

EMAIL_DOMAINS: Final = ("example.org", "example.com")

CONDITIONS: Final = (
    Condition("I10", "Essential (primary) hypertension", "FM", 25, 104, 60),
    Condition("E78.5", "Hyperlipidemia, unspecified", "FM", 30, 104, 45),
    Condition("E11.9", "Type 2 diabetes mellitus without complications", "FM", 30, 104, 28, "diabetes"),
    Condition("E10.9", "Type 1 diabetes mellitus without complications", "FM", 5, 59, 2, "diabetes"),
    Condition("O24.419", "Gestational diabetes mellitus in pregnancy, unspecified control", "F", 20, 44, 2,
              "diabetes"),
    Condition("Z34.90", "Encounter for supervision of normal pregnancy, unspecified, unspecified trimester",
              "F", 20, 44, 14, "diabetes"),  # which would make it no normal one
    Condition("E66.9", "Obesity, unspecified", "FM", 5, 104, 22),
    Condition("J45.909", "Unspecified asthma, uncomplicated", "FM", 5, 104, 16),
    Condition("J44.9", "Chronic obstructive pulmonary disease, unspecified", "FM", 45, 104, 13),
    Condition("J06.9", "Acute upper respiratory infection, unspecified", "FM", 0, 104, 20),
    Condition("J02.9", "Acute pharyngitis, unspecified", "FM", 5, 59, 14),
    Condition("J21.9", "Acute bronchiolitis, unspecified", "FM", 0, 4, 14),
    Condition("J30.9", "Allergic rhinitis, unspecified", "FM", 5, 104, 15),
    Condition("H66.90", "Otitis media, unspecified, unspecified ear", "FM", 0, 14, 24),
    Condition("L20.9", "Atopic dermatitis, unspecified", "FM", 0, 39, 10),
    Condition("L70.0", "Acne vulgaris", "FM", 10, 29, 12),
    Condition("Z00.129", "Encounter for routine child health examination without abnormal findings",
              "FM", 0, 14, 40),
    Condition("A09", "Infectious gastroenteritis and colitis, unspecified", "FM", 0, 104, 8),
    Condition("B34.9", "Viral infection, unspecified", "FM", 0, 104, 10),
    Condition("F90.9", "Attention-deficit hyperactivity disorder, unspecified type", "FM", 5, 39, 11),
    Condition("F41.1", "Generalized anxiety disorder", "FM", 15, 104, 18),
    Condition("F32.A", "Depression, unspecified", "FM", 15, 104, 18),
    Condition("G43.909", "Migraine, unspecified, not intractable, without status migrainosus", "FM", 10, 69, 9),
    Condition("G47.33", "Obstructive sleep apnea (adult) (pediatric)", "FM", 20, 104, 12),
    Condition("M54.50", "Low back pain, unspecified", "FM", 15, 104, 24),
    Condition("K21.9", "Gastro-esophageal reflux disease without esophagitis", "FM", 20, 104, 22),
    Condition("K59.00", "Constipation, unspecified", "FM", 0, 104, 7),
    Condition("E03.9", "Hypothyroidism, unspecified", "FM", 20, 104, 12),
    Condition("E55.9", "Vitamin D deficiency, unspecified", "FM", 0, 104, 12),
    Condition("D64.9", "Anemia, unspecified", "FM", 0, 104, 9),
    Condition("N39.0", "Urinary tract infection, site not specified", "FM", 15, 104, 10),
    Condition("E28.2", "Polycystic ovarian syndrome", "F", 15, 44, 6),
    Condition("N80.9", "Endometriosis, unspecified", "F", 15, 49, 4),
    Condition("N95.1", "Menopausal and female climacteric states", "F", 45, 64, 12),
    Condition("C50.919", "Malignant neoplasm of unspecified site of unspecified female breast", "F", 40, 104, 5),
    Condition("N40.0", "Benign prostatic hyperplasia without lower urinary tract symptoms", "M", 50, 104, 18),
    Condition("C61", "Malignant neoplasm of prostate", "M", 50, 104, 6),
    Condition("N52.9", "Male erectile dysfunction, unspecified", "M", 40, 104, 9),
    Condition("M17.9", "Osteoarthritis of knee, unspecified", "FM", 45, 104, 16),
    Condition("M81.0", "Age-related osteoporosis without current pathological fracture", "FM", 60, 104, 9),
    Condition("M10.9", "Gout, unspecified", "FM", 35, 104, 6),
    Condition("I25.10", "Atherosclerotic heart disease of native coronary artery without angina pectoris",
              "FM", 45, 104, 15),
    Condition("I48.91", "Unspecified atrial fibrillation", "FM", 50, 104, 9),
    Condition("I50.9", "Heart failure, unspecified", "FM", 55, 104, 8),
    Condition("I63.9", "Cerebral infarction, unspecified", "FM", 55, 104, 4),
    Condition("N18.30", "Chronic kidney disease, stage 3 unspecified", "FM", 50, 104, 10),
    Condition("H25.9", "Unspecified age-related cataract", "FM", 60, 104, 12),
    Condition("G30.9", "Alzheimer's disease, unspecified", "FM", 65, 104, 6),
)  # fmt: skip

#: What a diagnosis adds to (systolic, diastolic, heart rate, oxygen saturation).
VITAL_SHIFTS: Final = {
    "I10": (18, 10, 0, 0),
    "E66.9": (6, 4, 3, 0),
    "I48.91": (0, 0, 22, 0),
    "I50.9": (-6, -2, 10, -2),
    "J44.9": (0, 0, 6, -4),
    "J45.909": (0, 0, 4, -1),
    "J21.9": (0, 0, 20, -3),
    "Z34.90": (-4, -4, 8, 0),
    "E03.9": (0, 0, -6, 0),
    "D64.9": (0, 0, 8, 0),
}

#: LOINC code, display and UCUM unit of the vital signs, in the order of the shifts.
VITALS: Final = (
    ("8480-6", "Systolic blood pressure", "mm[Hg]"),
    ("8462-4", "Diastolic blood pressure", "mm[Hg]"),
    ("8867-4", "Heart rate", "/min"),
    ("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry", "%"),
)
