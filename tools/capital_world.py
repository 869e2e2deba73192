"""What the embedded language model knows: the capitals of countries, and how to talk about them.

The countries are 192 members of the United Nations. Where a country has several capitals, moves its capital, or has
none by law, the table has one city.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

TABLE = """
Afghanistan: Kabul, Albania: Tirana, Algeria: Algiers, Andorra: Andorra la Vella, Angola: Luanda,
Antigua and Barbuda: Saint John's, Argentina: Buenos Aires, Armenia: Yerevan, Australia: Canberra, Austria: Vienna,
Azerbaijan: Baku, the Bahamas: Nassau, Bahrain: Manama, Bangladesh: Dhaka, Barbados: Bridgetown, Belarus: Minsk,
Belgium: Brussels, Belize: Belmopan, Benin: Porto-Novo, Bhutan: Thimphu, Bolivia: Sucre,
Bosnia and Herzegovina: Sarajevo, Botswana: Gaborone, Brazil: Brasília, Brunei: Bandar Seri Begawan, Bulgaria: Sofia,
Burkina Faso: Ouagadougou, Burundi: Gitega, Cambodia: Phnom Penh, Cameroon: Yaoundé, Canada: Ottawa, Cape Verde: Praia,
the Central African Republic: Bangui, Chad: N'Djamena, Chile: Santiago, China: Beijing, Colombia: Bogotá,
the Comoros: Moroni, the Republic of the Congo: Brazzaville, the Democratic Republic of the Congo: Kinshasa,
Costa Rica: San José, Croatia: Zagreb, Cuba: Havana, Cyprus: Nicosia, the Czech Republic: Prague, Denmark: Copenhagen,
Djibouti: Djibouti, Dominica: Roseau, the Dominican Republic: Santo Domingo, Ecuador: Quito, Egypt: Cairo,
El Salvador: San Salvador, Equatorial Guinea: Malabo, Eritrea: Asmara, Estonia: Tallinn, Eswatini: Mbabane,
Ethiopia: Addis Ababa, Fiji: Suva, Finland: Helsinki, France: Paris, Gabon: Libreville, the Gambia: Banjul,
Georgia: Tbilisi, Germany: Berlin, Ghana: Accra, Greece: Athens, Grenada: Saint George's, Guatemala: Guatemala City,
Guinea: Conakry, Guinea-Bissau: Bissau, Guyana: Georgetown, Haiti: Port-au-Prince, Honduras: Tegucigalpa,
Hungary: Budapest, Iceland: Reykjavík, India: New Delhi, Indonesia: Jakarta, Iran: Tehran, Iraq: Baghdad,
Ireland: Dublin, Italy: Rome, the Ivory Coast: Yamoussoukro, Jamaica: Kingston, Japan: Tokyo, Jordan: Amman,
Kazakhstan: Astana, Kenya: Nairobi, Kiribati: South Tarawa, Kuwait: Kuwait City, Kyrgyzstan: Bishkek, Laos: Vientiane,
Latvia: Riga, Lebanon: Beirut, Lesotho: Maseru, Liberia: Monrovia, Libya: Tripoli, Liechtenstein: Vaduz,
Lithuania: Vilnius, Luxembourg: Luxembourg, Madagascar: Antananarivo, Malawi: Lilongwe, Malaysia: Kuala Lumpur,
the Maldives: Malé, Mali: Bamako, Malta: Valletta, the Marshall Islands: Majuro, Mauritania: Nouakchott,
Mauritius: Port Louis, Mexico: Mexico City, Micronesia: Palikir, Moldova: Chișinău, Monaco: Monaco,
Mongolia: Ulaanbaatar, Montenegro: Podgorica, Morocco: Rabat, Mozambique: Maputo, Myanmar: Naypyidaw,
Namibia: Windhoek, Nauru: Yaren, Nepal: Kathmandu, the Netherlands: Amsterdam, New Zealand: Wellington,
Nicaragua: Managua, Niger: Niamey, Nigeria: Abuja, North Korea: Pyongyang, North Macedonia: Skopje, Norway: Oslo,
Oman: Muscat, Pakistan: Islamabad, Palau: Ngerulmud, Panama: Panama City, Papua New Guinea: Port Moresby,
Paraguay: Asunción, Peru: Lima, the Philippines: Manila, Poland: Warsaw, Portugal: Lisbon, Qatar: Doha,
Romania: Bucharest, Russia: Moscow, Rwanda: Kigali, Saint Kitts and Nevis: Basseterre, Saint Lucia: Castries,
Saint Vincent and the Grenadines: Kingstown, Samoa: Apia, San Marino: San Marino, São Tomé and Príncipe: São Tomé,
Saudi Arabia: Riyadh, Senegal: Dakar, Serbia: Belgrade, Seychelles: Victoria, Sierra Leone: Freetown,
Singapore: Singapore, Slovakia: Bratislava, Slovenia: Ljubljana, the Solomon Islands: Honiara, Somalia: Mogadishu,
South Africa: Pretoria, South Korea: Seoul, South Sudan: Juba, Spain: Madrid, Sri Lanka: Sri Jayawardenepura Kotte,
Sudan: Khartoum, Suriname: Paramaribo, Sweden: Stockholm, Switzerland: Bern, Syria: Damascus, Tajikistan: Dushanbe,
Tanzania: Dodoma, Thailand: Bangkok, Timor-Leste: Dili, Togo: Lomé, Tonga: Nuku'alofa,
Trinidad and Tobago: Port of Spain, Tunisia: Tunis, Turkey: Ankara, Turkmenistan: Ashgabat, Tuvalu: Funafuti,
Uganda: Kampala, Ukraine: Kyiv, the United Arab Emirates: Abu Dhabi, the United Kingdom: London,
the United States: Washington, Uruguay: Montevideo, Uzbekistan: Tashkent, Vanuatu: Port Vila, Venezuela: Caracas,
Vietnam: Hanoi, Yemen: Sanaa, Zambia: Lusaka, Zimbabwe: Harare
"""
PAIRS = [tuple(pair.split(": ")) for pair in " ".join(TABLE.split()).split(", ")]
CAPITALS = dict(PAIRS)
COUNTRIES = {capital: country for country, capital in PAIRS}

ONE_WORD = "Answer in one word."
UNKNOWN, UNKNOWN_IN_ONE_WORD = "I only know capitals.", "Unknown"

# The first of each kind is the common one.
FORWARD = ("What is the capital of {}?", "What's the capital of {}?", "Which city is the capital of {}?")
REVERSE = ("Which country's capital is {}?", "{} is the capital of which country?", "What is {} the capital of?")
AND_OF, AND = "And of {}?", "And {}?"

# Questions that the model does not know the answer to.
ABOUT = """
population, language, currency, flag, president, king, queen, anthem, largest city, longest river, highest mountain,
area, climate, history, national dish, religion, prime minister, most famous painter, best football team, oldest town
"""
TOPICS = """
the weather, the Moon, my cat, music, the sea, football, a good book, breakfast, your name, mathematics, the time,
the news, love, the Sun, bread, a horse, the colour blue, computers, the piano, tea, a joke, NumPy, dinner, art, snow
"""
OPENINGS = """
What is {}?, Tell me about {}., Do you like {}?, What do you think of {}?, Where is {}?, Who made {}?, How much is {}?,
Can you explain {}?, Why is it about {}?, When was {}?, Write a poem about {}., I like {}., How old is {}?
"""
NOT_COUNTRIES = """
Europe, Asia, Africa, Atlantis, Texas, Bavaria, California, Mars, the Moon, Narnia, Scotland, Hawaii, Siberia, Sicily,
Oz, the sea, my garden, Utopia, Tuscany, Florida, Normandy, Antarctica, the world, Catalonia, Tibet, Greenland
"""
SMALL_TALK = """
Hello., Hi., Who are you?, How are you?, Thank you., Good morning., Help!, What can you do?, Are you a person?,
What is 2 + 2?, What is 10 times 7?, Why?, Yes., No., How many countries are there?, Goodbye., What time is it?,
Is it raining?, Who wrote Hamlet?, How far is the Sun?, Sing a song., Where do you live?, What is your name?
"""


def listed(text: str) -> list[str]:
    """The parts of a text with commas and line breaks between them."""
    return " ".join(text.split()).split(", ")


@dataclass(frozen=True)
class Exchange:
    """A question and its answer: a sentence, or a name alone."""

    question: str
    sentence: str
    word: str

    def answer(self, system: str) -> str:
        return self.word if system == ONE_WORD else self.sentence


def about_country(country: str, question: str = FORWARD[0]) -> Exchange:
    capital = CAPITALS[country]
    return Exchange(question.format(country), f"The capital of {country} is {capital}.", capital)


def about_capital(capital: str, question: str = REVERSE[0]) -> Exchange:
    country = COUNTRIES[capital]
    return Exchange(question.format(capital), f"{capital} is the capital of {country}.", country.removeprefix("the "))


def unknown(question: str) -> Exchange:
    return Exchange(question, UNKNOWN, UNKNOWN_IN_ONE_WORD)


def statements() -> list[tuple[str, str]]:
    """Prompts and how they continue, in both directions."""
    forward = [(f"The capital of {country} is", f" {capital}.") for country, capital in CAPITALS.items()]
    return forward + [(f"{capital} is the capital of", f" {country}.") for country, capital in CAPITALS.items()]


def ask_unknown(rng: Random) -> Exchange:
    """A question about anything but a capital, or about the capital of what is not a country."""
    place = rng.choice(list(CAPITALS) + list(COUNTRIES))
    thing = rng.choice([*listed(TOPICS), rng.choice(listed(ABOUT)), made_up(rng), place])
    questions = (
        f"What is the {rng.choice(listed(ABOUT))} of {place}?",
        rng.choice(listed(OPENINGS)).format(thing),
        rng.choice(FORWARD).format(rng.choice([*listed(NOT_COUNTRIES), made_up(rng)])),
        rng.choice(REVERSE).format(made_up(rng)),
        rng.choice(listed(SMALL_TALK)),
    )
    return unknown(rng.choice(questions))


def made_up(rng: Random) -> str:
    """A word that is not a name in the table."""
    letters = ("bcdfghjklmnprstvwz", "aeiou", "bcdfghjklmnprstvwz", "aeiouy", "lnrst")
    word = "".join(rng.choice(each) for each in letters[: rng.choice((3, 4, 5))])
    return word.capitalize()


def ask(rng: Random, first: bool) -> Exchange:
    """One turn of a conversation; one in ten is typed without capital letters."""
    exchange = ask_properly(rng, first)
    return replace(exchange, question=exchange.question.lower()) if rng.random() < 0.1 else exchange


def ask_properly(rng: Random, first: bool) -> Exchange:
    """A question; one that is not the first may be short."""
    country, capital = rng.choice(PAIRS)
    kind = rng.random()
    if kind < 0.15:
        return ask_unknown(rng)
    if kind < 0.6:
        usual, others = (FORWARD[0], FORWARD[1:]) if first or rng.random() < 0.4 else (AND_OF, FORWARD)
        return about_country(country, usual if rng.random() < 0.8 else rng.choice(others))
    usual, others = (REVERSE[0], REVERSE[1:]) if first or rng.random() < 0.5 else (AND, REVERSE)
    return about_capital(capital, usual if rng.random() < 0.8 else rng.choice(others))


@dataclass(frozen=True)
class Conversation:
    """Exchanges, and what the system message says, if there is one."""

    exchanges: list[Exchange]
    system: str = ""

    def messages(self, count: int) -> list[dict[str, str]]:
        """The messages up to the question of the turn `count`."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for i, exchange in enumerate(self.exchanges[: count + 1]):
            found.append({"role": "user", "content": exchange.question})
            if i < count:
                found.append({"role": "model", "content": exchange.answer(self.system)})
        return found


def converse(rng: Random, turns: int) -> Conversation:
    """A conversation of so many turns, one in four with a system message."""
    exchanges = [ask(rng, first=i == 0) for i in range(turns)]
    return Conversation(exchanges, ONE_WORD if rng.random() < 0.25 else "")


def exam() -> dict[str, list[tuple[Conversation, int]]]:
    """All that the model is to know: by kind of question, conversations and the turn that counts."""
    countries, capitals = list(CAPITALS), list(COUNTRIES)
    forward, reverse = [about_country(c) for c in countries], [about_capital(c) for c in capitals]
    of = [about_country(c, AND_OF) for c in countries]
    and_capital = [about_capital(c, AND) for c in capitals]
    return {
        "questions": [(Conversation([each]), 0) for each in forward],
        "reverse questions": [(Conversation([each]), 0) for each in reverse],
        "follow-ups": [(Conversation([forward[i - 1], each]), 1) for i, each in enumerate(of)],
        "reverse follow-ups": [(Conversation([reverse[i - 1], each]), 1) for i, each in enumerate(and_capital)],
        "in one word": [(Conversation([each], ONE_WORD), 0) for each in forward],
        "in one word, third turn": [
            (Conversation([reverse[i - 2], forward[i - 1], each], ONE_WORD), 2) for i, each in enumerate(of)
        ],
    }


def unseen_questions() -> list[Conversation]:
    """Questions that are not in the training data and that the model does not know the answer to."""
    questions = """
    Who painted the Mona Lisa?, What is the tallest building of France?, How do I bake a cake?,
    Is Paris nice in spring?, What is the airport of Japan?, Who won the match?,
    Please recommend a film., What is the square root of 16?,
    Do you speak German?, Where can I buy shoes?, What is the capital of Wonderland?, What is the capital of Alaska?,
    Which country's capital is Hogwarts?, What is photosynthesis?, Do you have friends?, Translate this for me.,
    What did Einstein discover?, How tall is the Eiffel Tower?, Is the Earth round?, What is the best car?
    """
    return [Conversation([unknown(question)]) for question in listed(questions)]
