/* Reads golden frames ("KIND ... wire=HEX" per line), takes each apart through fieldtune_frames.h, puts it together
 * again and prints the line anew. */
#include "fieldtune_frames.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void hex(const char *name, const uint8_t *bytes, size_t len)
{
    printf(" %s=", name);
    for (size_t i = 0; i < len; i++)
        printf("%02x", bytes[i]);
}

static void floats(const char *name, const uint8_t *from, int n)
{
    printf(" %s=", name);
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + 4 * i, 4);
        printf("%s%08x", i ? "," : "", bits);
    }
}

static const char *print(const struct ft_header *h, const uint8_t *p)
{
    struct ft_hello hello;
    struct ft_hello_ack ack;
    struct ft_command command;
    struct ft_state s;
    struct ft_heartbeat beat;
    struct ft_time_request ask;
    struct ft_time_reply reply;
    struct ft_arm arm;
    struct ft_reset reset;
    uint32_t reward;
#define U(value) ((unsigned long long)(value))
#define TAKE(into) memcpy(&into, p, sizeof into)
#define HEAD(name) printf("%s seq=%u ack=%u t_us=%u", name, h->seq, h->ack, h->t_us)
    switch (h->kind) {
    case FT_HELLO:
        TAKE(hello), HEAD("HELLO"), printf(" schema_hash=%llu session=%u", U(hello.schema_hash), hello.session);
        break;
    case FT_HELLO_ACK:
        TAKE(ack), HEAD("HELLO_ACK");
        printf(" schema_hash=%llu firmware=%u boot_id=%u control_period_us=%u watchdog_ms=%u n_observation=%u "
               "n_action=%u drive=%u", U(ack.schema_hash), ack.firmware, ack.boot_id, ack.control_period_us,
               ack.watchdog_ms, ack.n_observation, ack.n_action, ack.drive);
        break;
    case FT_COMMAND:
        TAKE(command), HEAD("COMMAND"), printf(" session=%u valid_ms=%u", command.session, command.valid_ms);
        floats("action", p + sizeof command, command.n);
        break;
    case FT_STATE:
        TAKE(s), HEAD("STATE"), memcpy(&reward, p + offsetof(struct ft_state, reward), 4);
        printf(" tick=%u episode=%u drive=%u task=%u faults=%u reward=%08x crc_errors=%u sequence_gaps=%u "
               "late_commands=%u rejected_commands=%u overruns=%u", s.tick, s.episode, s.drive, s.task, s.faults,
               reward, s.crc_errors, s.sequence_gaps, s.late_commands, s.rejected_commands, s.overruns);
        floats("applied", p + sizeof s, s.n_applied);
        floats("observation", p + sizeof s + 4 * s.n_applied, s.n_observation);
        break;
    case FT_HEARTBEAT:
        TAKE(beat), HEAD("HEARTBEAT"), printf(" boot_id=%u drive=%u", beat.boot_id, beat.drive);
        break;
    case FT_TIME_REQUEST:
        TAKE(ask), HEAD("TIME_REQUEST"), printf(" t1_us=%llu", U(ask.t1_us));
        break;
    case FT_TIME_REPLY:
        TAKE(reply), HEAD("TIME_REPLY");
        printf(" t1_us=%llu t2_us=%llu t3_us=%llu", U(reply.t1_us), U(reply.t2_us), U(reply.t3_us));
        break;
    case FT_ESTOP: HEAD("ESTOP"); break;
    case FT_ARM: TAKE(arm), HEAD("ARM"), printf(" session=%u", arm.session); break;
    case FT_FAULT_RESET: HEAD("FAULT_RESET"); break;
    case FT_RESET:
        TAKE(reset), HEAD("RESET"), printf(" episode=%u seed=%llu", reset.episode, U(reset.seed));
        break;
    case FT_DISARM: HEAD("DISARM"); break;
    default: return "unknown kind";
    }
    return NULL;
}

int main(int argc, char **argv)
{
    char line[4096];
    FILE *in = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (in == NULL || ft_crc32c((const uint8_t *)"123456789", 9) != 0xe3069283u)
        return 2;
    while (fgets(line, sizeof line, in)) {
        const char *at = strstr(line, " wire=");
        if (line[0] == '#' || at == NULL)
            continue;
        uint8_t wire[2 * FT_MAX_WIRE], frame[2 * FT_MAX_WIRE], again[2 * FT_MAX_WIRE];
        size_t len = 0;
        unsigned byte;
        for (at += 6; len < sizeof wire && sscanf(at, "%2x", &byte) == 1; at += 2)
            wire[len++] = (uint8_t)byte;
        memcpy(frame, wire + 1, len - 2);
        size_t frame_len = ft_unstuff(frame, len - 2);
        if (!ft_is_frame(frame, frame_len))
            return 3;
        struct ft_header header;
        memcpy(&header, frame, sizeof header);
        const char *problem = print(&header, frame + sizeof header);
        if (problem != NULL)
            return 4;
        memcpy(again, &header, sizeof header);
        memcpy(again + sizeof header, frame + sizeof header, header.len);
        uint32_t crc = ft_crc32c(again, sizeof header + header.len);
        memcpy(again + sizeof header + header.len, &crc, 4);
        hex("frame", again, sizeof header + header.len + 4);
        len = ft_stuff(again, sizeof header + header.len + 4, wire);
        hex("wire", wire, len);
        putchar('\n');
    }
    return 0;
}
