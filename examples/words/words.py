"""The other side of server.mjs: counts the words of each text that it is asked about."""

from collections import Counter

from offloop import Channel

for message in Channel.attach(3):
    try:
        message.reply(dict(Counter(message.value.split())))
    except AttributeError as error:  # no text
        message.fail(error)
