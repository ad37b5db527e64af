/*
 * Neighbours of ours on a pod's link, for tests.
 *
 * `note_out` and `check_in` are one stateful firewall: the first, at ingress, notes whom the pod talks to; the second, at
 * egress, drops and counts what is no answer to that. Both return what `verdict` says when TCP or UDP may pass.
 * `other_out`, `other_in`: the same code again, as another program.
 */
struct pair {
	u32 from[4], to[4];
	u16 sport, dport;
	u32 protocol;
};

BPF_F_TABLE("lru_hash:" PIN "seen", struct pair, u64, seen, 65536, 0);
BPF_F_TABLE("array:" PIN "counts", u32, u64, counts, 4, 0); /* noted, answers, violations */
BPF_F_TABLE("array:" PIN "verdict", u32, int, verdict, 1, 0);

static inline __attribute__((always_inline)) void count(u32 which)
{
	u64 *n = counts.lookup(&which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static inline __attribute__((always_inline)) int passes(void)
{
	int zero = 0, *v = verdict.lookup(&zero);

	return v ? *v : -1;
}

static inline __attribute__((always_inline)) int read_pair(struct __sk_buff *skb, struct pair *p)
{
	u8 protocol;
	u32 l4;

	if (skb->protocol == __builtin_bswap16(0x0800)) {
		if (bpf_skb_load_bytes(skb, 23, &protocol, 1) || bpf_skb_load_bytes(skb, 26, p->from, 4) ||
		    bpf_skb_load_bytes(skb, 30, p->to, 4))
			return 0;
		l4 = 34;
	} else if (skb->protocol == __builtin_bswap16(0x86dd)) {
		if (bpf_skb_load_bytes(skb, 20, &protocol, 1) || bpf_skb_load_bytes(skb, 22, p->from, 16) ||
		    bpf_skb_load_bytes(skb, 38, p->to, 16))
			return 0;
		l4 = 54;
	} else {
		return 0;
	}
	p->protocol = protocol;
	if (protocol != 6 && protocol != 17)
		return 0;
	return !bpf_skb_load_bytes(skb, l4, &p->sport, 4);
}

static inline __attribute__((always_inline)) int outward(struct __sk_buff *skb)
{
	struct pair p = {};
	u64 one = 1;

	if (!read_pair(skb, &p))
		return -1;
	count(0);
	seen.update(&p, &one);
	return passes();
}

static inline __attribute__((always_inline)) int inward(struct __sk_buff *skb)
{
	struct pair p = {}, back = {};

	if (!read_pair(skb, &p))
		return -1;
	__builtin_memcpy(back.from, p.to, 16);
	__builtin_memcpy(back.to, p.from, 16);
	back.sport = p.dport;
	back.dport = p.sport;
	back.protocol = p.protocol;
	if (!seen.lookup(&back)) {
		count(2);
		return 2;
	}
	count(1);
	return passes();
}

int note_out(struct __sk_buff *skb)
{
	return outward(skb);
}

int check_in(struct __sk_buff *skb)
{
	return inward(skb);
}

int other_out(struct __sk_buff *skb)
{
	return outward(skb);
}

int other_in(struct __sk_buff *skb)
{
	return inward(skb);
}
